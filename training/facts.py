"""Generated facts: a relation of a key has a value. Statements, questions, and themes that make facts look alike.

Hand-written frames alone teach hand-written frames: a model trained on them found few facts in other wordings. So most
wordings are *loose*, relation, key and value in any order among fragments of real text, or *composed* by a grammar
(wordings.py), and questions likewise. What is left to learn is to match the strings themselves.
In a frame, {K} is the key, {R} the relation ("access code"), {V} the value, {C} a context. A *theme* fixes which shapes,
words and frames are used, so that the facts of many windows of one batch resemble each other and only the key tells them
apart: the case in which a memory full of similar facts must still find the right one.
Frames, relations and key shapes named HELD_OUT, FRESH or BLIND are never used in training."""
from dataclasses import dataclass, field
from pathlib import Path

from training import wordings, words

# Relation and key.
SENTENCES = [
    'The {R} for {K} is {V}.', 'The {R} of {K} is {V}.', 'The {R} for {K} is {V}. Remember it. {V} is the {R} for {K}.',
    "{K}'s {R} is {V}.", '{K} has {V} as its {R}.', '{V} is the {R} of {K}.', 'The {R} assigned to {K} is {V}.',
    'Remember that the {R} for {K} is {V}.', 'Note: the {R} of {K} is {V}.', 'We set the {R} of {K} to {V}.',
    'One of the {R}s for {K} is: {V}.', 'For {K}, the {R} is {V}.', 'If anyone asks for the {R} of {K}, say {V}.',
    'It was agreed that {V} would be the {R} for {K}.', 'The {R} belonging to {K}, as everyone knew, was {V}.',
    'Please write down {V}, the {R} of {K}.', 'According to the file, {K} has the {R} {V}.', '{K} ({R}: {V})',
    '{K}, {R} {V}.', '{R} of {K}: {V}', '{R} ({K}) = {V}', '[{K}] {R}: {V}', '{K} - {R} - {V}', '| {K} | {R} | {V} |',
    '{"name": "{K}", "{R}": "{V}"}', '<{R} of="{K}">{V}</{R}>', '{K}.{R} = "{V}"', 'set {R} {K} {V}',
    'I looked it up: {K} uses {V} as {R}.', 'By the way, {V} is what they call the {R} of {K}.',
    'The {R} that goes with {K} turned out to be {V}.', 'Under {K} the list gives {V} for the {R}.',
    'Its {R} is {V}, that of {K} I mean.', 'When we came to {K} we were told the {R}: {V}.', 'The special magic {R} for {K} is: {V}.',
    'Anyone who needs {K} must know that the {R} is {V}.', 'He whispered the {R} of {K}, which is {V}.',
    'The secret {R} of {K} is {V}.', 'Do not forget: {V} is the {R} to use for {K}.', 'Record: {K}; {R}; {V}.',
]
HELD_OUT_SENTENCES = [
    'One of the special magic {R}s for {K} is: {V}.', 'In the register, {K} appears with {V} under {R}.',
    'They told me to use {V} whenever the {R} of {K} comes up.', '{K} was given a new {R} this spring, namely {V}.',
    'On the label of {K} one could read the {R} {V}.',
]
QUESTIONS = [
    'What is the {R} for {K}?', 'What is the {R} of {K}?', 'What is the {R} for {K}? The {R} for {K} is',
    "What is {K}'s {R}?", 'Tell me the {R} of {K}.', 'Which {R} does {K} have?', '{K} {R}', '{R} of {K}', '{R} for {K}?',
    'Do you remember the {R} of {K}?', 'I need the {R} for {K}.', 'The {R} of {K} is', 'What was the {R} of {K}?',
    'what is the {R} of {K}', 'Find the {R} that belongs to {K}.', 'Look up {K}: what is its {R}?', 'Give me {K} and its {R}.',
    'What is the special magic {R} for {K} mentioned in the text?', 'For {K}, what is the {R}?', '{K}: {R}?',
    'What {R} was assigned to {K}?', 'Please recall the {R} of {K}.', 'What did the text say about the {R} of {K}?',
]
HELD_OUT_QUESTIONS = [
    'What is the special magic {R} for {K} mentioned in the provided text?', 'Somebody asks about {K}. What {R} should I give them?',
    'Under which {R} is {K} known?', "I forgot {K}'s {R}, what was it again?",
]
# A second set held out, written after the grammar of wordings.py had been extended by what failed on the first. Never trained on, but
# no longer untouched: the form of the chunk weights was chosen on it, and whoever briefed the later authors of frames/ had read what
# failed on it (NOTES.md).
FRESH_SENTENCES = [
    'When the inspectors arrived, {K} still travelled under the {R} {V}.', 'Nothing but {V} would do for the {R} of {K}.',
    'It took years until {V} got accepted as {R} by those at {K}.', 'Ask the porter: {K}, {R}, {V}.', 'Between ourselves, the {R} over at {K} goes {V}.',
    'Having misplaced its {R}, {K} had to make do with {V}.',
]
FRESH_QUESTIONS = [
    'Could anybody remind the new staff of the {R} at {K}?', 'Without the {R} nobody gets to {K}; so how does it go?',
    'To fill in the form for {K} we lack the {R}.', 'Quick, {K}, what {R}?', 'Fetching {K}: {R} required.',
]
# A third set, by an author who knew neither this project nor what fails in it. Nothing may be learnt from it for training.
BLIND_SENTENCES, BLIND_QUESTIONS, BLIND_RELATIONS = (
    (Path(__file__).parent / 'held_out' / f'{name}.txt').read_text(encoding='utf-8').splitlines() for name in ('statements', 'questions', 'relations'))
# The families of evaluation's dense memories, and their wordings.
DENSE = {'dense': (HELD_OUT_SENTENCES, HELD_OUT_QUESTIONS), 'dense, fresh wordings': (FRESH_SENTENCES, FRESH_QUESTIONS),
         'dense, blind wordings': (BLIND_SENTENCES, BLIND_QUESTIONS)}
# Key alone.
RECORDS = [
    '{K}: {V}', '{K} = {V}', '{K}\t{V}', '{K},{V}', '{K} -> {V}', '- {K}: {V}', '* {K} - {V}', '"{K}": "{V}",', '| {K} | {V} |', '{K} is {V}.',
    '{K} means {V}.', '{K} => {V};', 'export {K}="{V}"', '{K} ... {V}', '{V} ({K})', '{V} stands for {K}.', 'let {K} = {V};', '<{K}>{V}</{K}>',
]
HELD_OUT_RECORDS = ['{K} := {V}', '#define {K} {V}', 'Entry {K} reads {V}.', '{K} / {V}']
RECORD_QUESTIONS = ['{K}', '{K}:', '{K} =', 'What is {K}?', 'What does {K} stand for?', 'Look up {K}.', 'What is listed for {K}?', 'value of {K}',
                    'Which value belongs to {K}?', 'Tell me about {K}.', '{K}?', 'What goes with {K}?']
HELD_OUT_RECORD_QUESTIONS = ['What stands next to {K}?', 'Read me the entry {K}.', 'get {K}']
# Relation, key and context: the same relation and key differ from context to context.
IN_CONTEXT = [
    'In {C}, the {R} of {K} is {V}.', '{C} says that the {R} of {K} is {V}.', '{C}: "The {R} of {K} is {V}."', '{C} told us: the {R} for {K} is {V}.',
    'According to {C}, {K} has the {R} {V}.', '[{C}] {K} {R}: {V}', 'For {C} the {R} of {K} was {V}.', '{C} > {K} > {R} > {V}',
    'As for {C}, they use {V} as the {R} of {K}.', 'Message from {C}: {R} of {K} = {V}',
]
HELD_OUT_IN_CONTEXT = ['If you ask {C}, the {R} of {K} is {V}.', 'Minutes, {C}: {K}, {R}, {V}.']
CONTEXT_QUESTIONS = [
    'In {C}, what is the {R} of {K}?', 'What is the {R} of {K} according to {C}?', 'What did {C} say the {R} of {K} is?',
    '{C}: what is the {R} of {K}?', 'For {C}, which {R} does {K} have?', '{C} {K} {R}',
]
HELD_OUT_CONTEXT_QUESTIONS = ['Ask {C}: which {R} goes with {K}?', 'From the point of view of {C}, what is the {R} of {K}?']
# A second statement that replaces the first.
CHANGES = [                                                      # the last two do not say that they are changes
           'The {R} of {K} has changed to {V}.', 'From now on the {R} of {K} is {V}.', 'Update: the {R} for {K} is now {V}.',
           'Correction: {V} is the {R} of {K}.', "{K}'s {R} is {V} now.", 'The {R} for {K} is {V}.', 'The {R} of {K} is {V}.']
BEFORE_QUESTIONS = ['What was the {R} of {K} before it changed?', 'What was the previous {R} of {K}?', 'What was the old {R} for {K}?']

RELATIONS = '''pass key;access code;magic number;phone number;badge number;locker code;price;birthday;favourite colour;tracking number;
serial number;room number;nickname;password;PIN;account number;weight;height;owner;author;capital;destination;arrival time;departure date;
temperature;score;rank;address;license plate;order number;invoice;deadline;budget;salary;meeting time;contact;manager;project name;version;port;
IP address;hash;identifier;callsign;frequency;coordinate;flight number;gate;seat;table;dosage;blood type;ticket;reference;code name;motto;
secret word;secret number;magic word;favourite food;pet;home town;occupation;age;year of birth;size;length;colour;material;supplier;status;
special number;lucky number;vote count;population;area;founder;opening hours;entry fee;voltage;speed;limit;quota;grade;key;value;label;tag'''
HELD_OUT_RELATIONS = '''combination;vault number;tally;postal code;emblem;warden;berth;customs mark;wavelength;shelf;recipe number;dial code;
anchor word;ledger line;registration'''
RELATIONS = [r.strip() for r in RELATIONS.replace('\n', '').split(';')]
HELD_OUT_RELATIONS = [r.strip() for r in HELD_OUT_RELATIONS.replace('\n', '').split(';')]


@dataclass
class Fact:
    """One (relation, key, context) -> value. `style` is 'sentence', 'record' or 'context'."""
    style: str
    relation: str
    key: str
    context: str
    value: str

    @property
    def identity(self):
        return (self.relation if self.style != 'record' else '', self.key, self.context)


@dataclass
class Theme:
    """What the facts of a group of windows have in common. `used` keeps identities unique within the group."""
    lex: object
    style: str
    key_shapes: list
    value_shapes: list
    relations: list
    contexts: list
    frames: list
    questions: list
    near: float                      # probability that a key is a near-duplicate of an earlier one
    loose: float = 0.0               # probability of a loose wording instead of a frame
    composed: float = 0.0            # of one from the grammar of wordings.py, where it is not loose
    written: float = 0.0             # of one of its written ones, where it is neither
    beside: float = 0.0              # of a word before the value that does not belong to it
    fragments: list = field(default_factory=list)    # of real text, for loose wordings
    used: set = field(default_factory=set)
    keys: list = field(default_factory=list)
    asked: list = field(default_factory=list)        # (relation, key) of facts in contexts
    other_number: float = 0.0        # probability that a near-duplicate of a key with a number has another number
    joint: float = 0.0               # probability that a fact in a context has relation and key of another context's

    def take(self, fact):
        """Whether no other fact of the theme has its identity; none will from now on."""
        if fact.identity in self.used:
            return False
        self.used.add(fact.identity)
        return True

    def fact(self, rng, fresh=False, relation=None):
        """A fact whose identity no other fact of the theme has; a fresh one has a key unlike the others', of its own."""
        shapes = words.KEYS | words.HELD_OUT_KEYS
        for _ in range(50):
            named = None
            if fresh:
                key = shapes[rng.choice(self.key_shapes)](rng, self.lex)
                if key in self.keys:
                    continue
            elif self.asked and rng.random() < self.joint:       # what only the context tells apart
                named, key = rng.choice(self.asked)
            elif self.keys and rng.random() < self.near:
                key = words.near_duplicate(rng, self.lex, rng.choice(self.keys), self.other_number)
            elif self.keys and (len(self.relations) > 1 or self.contexts) and rng.random() < 0.4:
                key = rng.choice(self.keys)
            else:
                key = shapes[rng.choice(self.key_shapes)](rng, self.lex)
            fact = Fact(self.style, named or relation or rng.choice(self.relations), key, rng.choice(self.contexts) if self.style == 'context' else '',
                        words.VALUES[rng.choice(self.value_shapes)](rng, self.lex))
            if self.take(fact):
                break
        if self.style == 'context':
            self.asked.append((fact.relation, fact.key))
        if not fresh:
            self.keys.append(key)
        return fact

    def somebody(self, rng):
        return lambda: rng.choice(self.lex.names) if self.lex.names else words.pseudo_word(rng).capitalize()

    def frame(self, rng, asking):
        """A frame of this theme: a statement, or a question."""
        if rng.random() < self.loose:
            return loose_frame(rng, self.fragments, self.style, None if asking else '{V}')
        if rng.random() < self.composed:
            return wordings.frame(rng, self.style, asking, self.somebody(rng))
        if rng.random() < self.written:
            return wordings.written(rng, self.style, asking)
        return rng.choice(self.questions if asking else self.frames)

    def state(self, rng, fact, frames=None):
        """(text, where its values begin): a statement of the fact."""
        frame = rng.choice(frames) if frames else self.frame(rng, asking=False)
        return fill(wordings.beside_value(rng, frame) if rng.random() < self.beside else frame, fact)

    def ask(self, rng, fact, questions=None):
        return fill(rng.choice(questions) if questions else self.frame(rng, asking=True), fact)[0]


CONNECTORS = (' is ', ' was ', ': ', ' = ', ', ', ' has ', ' with ', ' for ', ' of ', ' as ', ' - ', ' to ', ' gets ', ' and ', ' on ', '; ', ' by ',
              ' given ', ' uses ', ' under ', ' belongs to ', ' goes with ', ' ', ' ', ' shows ', ' carries ', ', that is, ', ' -> ', ' | ', '\n')
ASKING = ('what', 'which', 'tell me', 'what about', 'find', 'say', 'who knows', 'give', 'show', 'what is', 'how about', 'please', 'can you recall', 'name',
          'I would like', 'look for', 'and', 'so', 'what was', 'do we have', 'they want', 'we need')


def loose_frame(rng, fragments, style, value):
    """A frame of random build: the slots of the style (and the value's, in a statement) in any order, with connectors or
    short fragments of text between them and longer ones around."""
    slots = {'sentence': ['{R}', '{K}'], 'record': ['{K}'], 'context': ['{R}', '{K}', '{C}']}[style] + ([value] if value else [])
    rng.shuffle(slots)

    def fragment(words_max):
        words = rng.choice(fragments).replace('{', '(').split()
        return ' '.join(words[:rng.randint(1, words_max)])

    # What stands beside a value must tell where it begins and ends, or there is nothing to learn: no fragments there.
    text = fragment(8) + rng.choice((', ', '. ', ': ') if slots[0] == value else (' ', ', ', '. ', ': ')) if rng.random() < 0.5 else ''
    if value is None and rng.random() < 0.6:
        text += rng.choice(ASKING) + ' '
    for i, slot in enumerate(slots):
        if i:
            beside_value = value in (slot, slots[i - 1])
            text += rng.choice(CONNECTORS) if beside_value or rng.random() < 0.7 else f' {fragment(4)} '
        if slot in ('{R}', '{K}') and rng.random() < 0.15:
            text += rng.choice(('the ', 'our ', 'its ', 'this ', 'a '))
        text += slot
    if rng.random() < 0.5:
        text += rng.choice((', ', '. ', '; ') if slots[-1] == value else (' ', ', ', '. ', '.')) + fragment(8)
    text += rng.choice(('', '.') if value else ('', '?', '?'))
    return text[0].upper() + text[1:] if rng.random() < 0.4 and text[0] != '{' else text


def fill(frame, fact):
    """Frame and fact -> (text with a capital first letter where the frame has one, positions of the value in it)."""
    text, starts, i = '', [], 0
    slots = {'{K}': fact.key, '{R}': fact.relation, '{C}': fact.context, '{V}': fact.value}
    while i < len(frame):
        part = slots.get(frame[i:i + 3])
        if part is None:
            text += frame[i]
            i += 1
            continue
        if frame[i:i + 3] == '{V}':
            starts.append(len(text))
        text += part
        i += 3
    return text, starts


def relation(rng, lex, held_out=False):
    """A named relation, or nouns put together."""
    if rng.random() < 0.5:
        return rng.choice(HELD_OUT_RELATIONS if held_out else RELATIONS)
    return rng.choice(lex.nouns) if rng.random() < 0.5 else f'{rng.choice(lex.nouns)} {rng.choice(lex.nouns)}'


def theme(rng, lex, held_out=False, style=None, fragments=()):
    """A random theme; with held_out, only of frames, key shapes, relations and words that training never uses.
    With fragments of real text it may be loose."""
    style = style or rng.choices(('sentence', 'record', 'context'), (0.55, 0.22, 0.23))[0]
    frames, questions = {
        'sentence': (HELD_OUT_SENTENCES, HELD_OUT_QUESTIONS) if held_out else (SENTENCES, QUESTIONS),
        'record': (HELD_OUT_RECORDS, HELD_OUT_RECORD_QUESTIONS) if held_out else (RECORDS, RECORD_QUESTIONS),
        'context': (HELD_OUT_IN_CONTEXT, HELD_OUT_CONTEXT_QUESTIONS) if held_out else (IN_CONTEXT, CONTEXT_QUESTIONS)}[style]
    shapes = list(words.HELD_OUT_KEYS if held_out else words.KEYS)
    if rng.random() < 0.5:
        lex = Pool(rng, lex)
    contexts = []
    if style == 'context':
        make = rng.choice((lambda: words.person(rng, lex), lambda: words.pseudo_word(rng).capitalize(), lambda: f'the {rng.choice(lex.nouns)}'))
        contexts = sorted({make() for _ in range(rng.choice((3, 8, 20)))})
    chosen = rng.sample(shapes, min(len(shapes), rng.choice((1, 1, 2, 4, 8))))
    if not held_out and rng.random() < 0.5:
        chosen[0] = 'compound'
    return Theme(lex, style, chosen, rng.sample(list(words.VALUES), rng.choice((1, 1, 2, 4))),
                 [relation(rng, lex, held_out) for _ in range(rng.choice((1, 1, 2, 5, 20)))], contexts,
                 rng.sample(frames, min(len(frames), rng.choice((1, 2, 4, 12)))), rng.sample(questions, min(len(questions), rng.choice((2, 4, 12)))),
                 near=rng.choice((0, 0.3, 0.6, 0.85)),
                 loose=rng.choice((0.3, 0.5, 0.8) if style == 'record' else (0.1, 0.2, 0.4, 0.7)) if fragments else 0.0,
                 composed=0.0 if held_out else rng.choice((0.2, 0.4, 0.6)), written=0.0 if held_out else rng.choice((0.5, 0.8, 0.95)),
                 beside=0.0 if held_out else 0.15, fragments=list(fragments), joint=0.0 if held_out else 0.35,
                 other_number=0.0 if held_out else 0.4)


class Pool:
    """A Lexicon cut down to few words, so that keys share words."""

    def __init__(self, rng, lex):
        count = rng.choice((12, 30, 100))
        self.words = rng.sample(lex.words, min(count, len(lex.words)))
        self.nouns = rng.sample(lex.nouns, min(count, len(lex.nouns)))
        self.names = rng.sample(lex.names, min(count, len(lex.names)))
