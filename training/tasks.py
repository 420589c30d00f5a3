"""The generated tasks: what a row's memory holds and what its reader is asked. Families after RULER (arXiv 2404.06654).

`World` is what every task draws from. A task is a function (world, rng, theme) -> (memory, questions); TASKS lists them
with their share of the rows. Facts are put into windows of real text; every row is also asked about that text."""
from dataclasses import dataclass

import numpy as np

from training import facts, prose, renaming, wordings, words
from training.rows import Part, Question, Memory, finish_row, finish_text_row


@dataclass
class World:
    tokenizer: object
    corpus: object
    lex: object
    question_sets: object        # QuestionSets, or None when there are no real questions
    memory_tokens: int = 3072
    reader_tokens: int = 1024
    chunk_size: int = 64

    def memory(self):
        return Memory(self.tokenizer, self.memory_tokens, self.chunk_size)

    def hay(self, rng, length):
        """`length` tokens of real text, half the time under other names."""
        ids = self.corpus.window(rng, length + length // 4 + 32)
        if rng.random() < 0.5:
            text = self.tokenizer.decode(ids)
            other = np.asarray(self.tokenizer.encode(renaming.apply(renaming.renamed(rng, self.lex, text), text)), np.int64)
            if len(other) >= length:
                return other[:length]
        return ids[:length]


class Statement:
    """A text to be put into the memory, and where in it the value stands (character positions, may be several)."""

    def __init__(self, tokenizer, text, starts, value):
        self.ids = tokenizer.encode(text)
        self.spans = [tokenizer.token_span(self.ids, text, start, len(value)) for start in starts]
        self.ends = np.cumsum(tokenizer.piece_bytes[np.asarray(self.ids, np.int64)])     # byte at which each token ends
        self.bytes = [1 + len(text[:start].encode()) for start in starts]                # at which the values begin
        self.position = None         # set when it has been placed

    def gold(self, memory):
        """The chunks that hold the value."""
        return set().union(*(memory.chunks(self.position + a, self.position + b) for a, b in self.spans))

    def gold_of_bytes(self, memory, first, last):
        """The chunks that hold bytes [first, last) of the value: one that crosses a boundary is told from two chunks."""
        places = (np.searchsorted(self.ends, [at + max(0, first), at + max(1, last) - 1], side='right') for at in self.bytes)
        return set().union(*(memory.chunks(self.position + int(a), self.position + int(b) + 1) for a, b in places))


# Of the chunks that begin in text, how many begin a segment. In a large memory a fact is alone in its segment; where all facts of a row share one, the
# recurrent state has seen the others of its key, and what is read says "the first of its key", by which lists then end. Where every chunk begins one, no
# chunk's encoder sees the next one's tokens, and no fact has a long text before it (NOTES.md, run 12).
RESTARTS = (0.0, 0.1, 0.2, 0.4)


def place(world, rng, statements, in_order=False, memory=None):
    """A memory of real text with the statements in it, in one segment or several; returns (memory, [(position, ids)] of the text between them)."""
    memory = memory or world.memory()
    if rng.random() < 0.3 and memory.length == 0:
        memory.append([world.tokenizer.document])
    order = list(statements)
    if not in_order:
        rng.shuffle(order)
    total = sum(len(s.ids) for s in order)
    hay = world.hay(rng, max(1, memory.room - total))
    cuts = sorted(rng.randrange(len(hay)) for _ in order)
    if rng.random() < 0.15:                                       # a list: statements follow one another
        block, at = rng.randint(2, 12), 0
        while at < len(cuts):
            cuts[at:at + block] = [cuts[at]] * len(cuts[at:at + block])
            at += block
    starts_word, stretches, previous, restarts = world.corpus.starts_word, [], 0, rng.choice(RESTARTS)
    for cut, statement in zip(cuts, order):
        while previous < cut < len(hay) and not starts_word[hay[cut]] and cut - previous > 1:
            cut -= 1
        cut = max(cut, previous)
        if cut > previous:
            stretches += in_segments(memory, rng, hay[previous:cut], restarts)
        statement.position = memory.append(statement.ids)
        previous = cut
    stretches += in_segments(memory, rng, hay[previous:], restarts)
    return memory, stretches


def in_segments(memory, rng, ids, restarts):
    """Appends real text; at each chunk that begins in it a new segment begins, with probability `restarts`. -> [(position, ids)], one of each."""
    begins = [at for at in range(-memory.length % memory.chunk_size, len(ids), memory.chunk_size) if rng.random() < restarts]
    stretches = []
    for begin, end in zip([0, *begins], [*begins, len(ids)]):
        memory.segment += begin in begins
        if end > begin:
            stretches.append((memory.append(ids[begin:end]), ids[begin:end]))
    return stretches


def about_text(world, rng, memory, stretches, count=24):
    """Questions about the real text of a memory: keyword questions and verbatim continuation."""
    questions, limit = [], memory.max
    for _ in range(4 * count):
        position, ids = rng.choice(stretches)
        length = rng.randint(30, 90)
        if len(ids) < 24:
            continue
        offset = rng.randrange(max(1, len(ids) - length))
        piece = ids[offset:offset + length]
        while len(piece) > 24 and not world.corpus.starts_word[piece[0]]:
            piece, offset = piece[1:], offset + 1
        if position + offset + len(piece) > limit:
            continue
        question = (prose.continuation(rng, world.tokenizer, piece, position + offset, memory.chunks) if rng.random() < 0.2 else
                    prose.keyword_question(rng, world.tokenizer, world.lex, piece, position + offset, memory.chunks))
        if question:
            questions.append(question)
        if len(questions) == count:
            break
    return questions


QUESTIONS_MAX = 40              # as many as a reader has room for
LISTED = '\n '                   # between the values of a list, one a line


def answer_parts(tokenizer, values, golds, ignored=None, separator=', '):
    """Answer "v1, v2, v3": one Part for each value, each with its own gold chunks. The separator belongs to the value before it:
    that a value has ended can only be read in the chunk that holds it. A list's last value has a line's end too, so that whether
    the list goes on is asked on its own: the query, which comes from the lower half, cannot know both."""
    text = ' ' + separator.join(values) + ('\n' if separator == LISTED else '')
    ids, parts, at, done = tokenizer.encode(text), [], 1, 0
    for i, value in enumerate(values):
        end = tokenizer.token_span(ids, text, at, len(value) + len(separator.rstrip(' ')))[1] if i + 1 < len(values) else len(ids)
        parts.append(Part(ids[done:end], golds[i], ignored[i] - golds[i] if ignored else set()))
        done, at = end, at + len(value) + len(separator)
    return parts


def told(world, memory, values, statements, ignored=None, separator=', '):
    """The answer that tells the values of these statements, each token from the chunk that holds it."""
    parts = []
    whole = answer_parts(world.tokenizer, values, [s.gold(memory) for s in statements], ignored, separator)
    for number, (value, statement, part) in enumerate(zip(values, statements, whole)):
        sizes, length = world.tokenizer.piece_bytes[np.asarray(part.ids, np.int64)], len(value.encode())
        marked = separator == LISTED or number + 1 < len(values)                    # spaces come before a value, a comma behind it
        mine, end = [], length + marked - int(sizes.sum())
        for token, size in zip(part.ids, sizes):
            begin, end = end, end + int(size)
            gold = statement.gold_of_bytes(memory, min(begin, length - 1), min(end, length))
            if mine and mine[-1].gold == gold:
                mine[-1].ids.append(token)
            else:
                mine.append(Part([token], gold, part.ignored - gold))
        parts += mine
    return parts


def listing(world, prompt, memory, values, statements, ignored=None):
    """A question that is answered with a list."""
    return Question(prompt, told(world, memory, values, statements, ignored, LISTED), listed=True)


def times(facts_made, wanted=QUESTIONS_MAX):
    """How often to ask about each of so few facts, each time in other words."""
    return max(1, min(3, wanted // len(facts_made)))


def state(world, rng, theme, fact, frames=None):
    text, starts = theme.state(rng, fact, frames)
    if rng.random() < 0.25:                                       # on a line of its own
        text, starts = f'\n{text}\n', [at + 1 for at in starts]
    return Statement(world.tokenizer, text, starts, fact.value)


def single(world, rng, theme):
    """Single- and multi-key needles: from a few facts to many near-duplicates in one window."""
    made = [theme.fact(rng) for _ in range(rng.choice((3, 12, 24, 40, 56, 72)))]
    statements = [state(world, rng, theme, f) for f in made]
    extra = passkey(world, rng) if rng.random() < 0.12 else None
    memory, stretches = place(world, rng, statements + ([extra[1]] if extra else []))
    questions = [Question(world.tokenizer.encode(theme.ask(rng, f)), told(world, memory, [f.value], [s]))
                 for _ in range(times(made)) for f, s in zip(made, statements)]
    rng.shuffle(questions)
    questions = questions[:QUESTIONS_MAX]
    if extra:
        ask, statement, value = extra
        questions.insert(0, Question(ask, answer_parts(world.tokenizer, [value], [statement.gold(memory)]), own_row_only=True))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


def passkey(world, rng):
    """A fact without a key: (question ids, statement, value)."""
    relation = rng.choice(('pass key', 'pass key', 'pass key', 'password', 'magic number', 'secret word', 'access code'))
    value = words.digits(rng, 5, 7) if relation != 'secret word' else rng.choice(world.lex.words)
    fact = facts.Fact('sentence', relation, '', '', value)
    frame = rng.choice(('The {R} is {V}. Remember it. {V} is the {R}.', 'The {R} is {V}.', 'There is a {R} hidden here: {V}.'))
    ask = rng.choice(('What is the {R}? The {R} is', 'What is the {R}? The {R} is', 'What is the {R}?', 'The {R} is', '{R}'))
    text, starts = facts.fill(frame, fact)
    return world.tokenizer.encode(facts.fill(ask, fact)[0]), Statement(world.tokenizer, text, starts, value), value


SEVERAL_KEYS = ('What are the {R}s for {K}?', 'What are the {R}s of {K}?', '{R}s of {K}?', 'Give me the {R}s for {K}.', '{R} for {K}', '{K}: {R}s?',
                'What are the special magic {R}s for {K} mentioned in the text?', 'Which {R}s do {K} have?', 'List the {R}s that go with {K}.',
                'I need the {R}s for all of these: {K}', 'Tell me every {R}: {K}.', 'For {K}, say the {R}s in this order.')
EVERY_VALUE = ('What are all the {R}s for {K}?', 'What are all the special magic {R}s for {K} mentioned in the text?', 'List every {R} of {K}.',
               'All {R}s of {K}?', '{K}: all {R}s', 'Tell me each {R} that {K} has.', 'Which {R}s were given for {K}?', 'every {R} for {K}',
               'Name all values of {R} for {K}.', 'What {R}s does {K} have?', '{R}s of {K}', 'Find all {R}s belonging to {K}.')


def around(rng, theme, text):
    """A question among fragments of real text, at times."""
    if not theme.fragments or rng.random() < 0.5:
        return text
    piece = ' '.join(rng.choice(theme.fragments).split()[:rng.randint(1, 7)])
    return f'{piece} {text}' if rng.random() < 0.5 else f'{text} {piece}'


def multi_query(world, rng, theme):
    """Several keys asked in one question, answered in the order of the question."""
    made = [theme.fact(rng) for _ in range(rng.choice((8, 16, 32)))]
    statements = [state(world, rng, theme, f) for f in made]
    memory, stretches = place(world, rng, statements)
    questions = []
    for _ in range(24):
        asked = range(len(made))
        if theme.style == 'sentence' and rng.random() < 0.7:         # several keys of one relation
            relation = rng.choice(made).relation
            asked = [i for i in asked if made[i].relation == relation]
        if len(asked) < 2:
            continue
        picked = rng.sample(list(asked), rng.randint(2, min(4, len(asked))))
        chosen = [made[i] for i in picked]
        if theme.style != 'context' and len({f.relation for f in chosen if theme.style == 'sentence'}) < 2 and rng.random() < 0.8:
            listed = rng.choice((', ', ', ', '; ', ' and ')).join(f.key for f in chosen[:-1]) + rng.choice((' and ', ' and ', ', ')) + chosen[-1].key
            frame = rng.choice(rng.choice((SEVERAL_KEYS, wordings.LISTED['several']))) if theme.style == 'sentence' else rng.choice(('{K}', 'What are {K}?', 'Look up {K}.', 'values of {K}'))
            text = around(rng, theme, frame.replace('{R}', chosen[0].relation).replace('{K}', listed))
        else:
            text = ' '.join(theme.ask(rng, f) for f in chosen)
        questions.append(listing(world, world.tokenizer.encode(text), memory, [f.value for f in chosen], [statements[i] for i in picked]))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


def multi_value(world, rng, theme):
    """One key with several values, told newest first; each step must leave what has been told and find the next. Some keys have one."""
    groups = []
    for _ in range(rng.choice((6, 10, 14))):
        fact = theme.fact(rng)
        shapes = theme.value_shapes if rng.random() < 0.6 else list(words.VALUES)
        groups.append([fact] + [facts.Fact(fact.style, fact.relation, fact.key, fact.context, words.VALUES[rng.choice(shapes)](rng, world.lex))
                                for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 3)))])
    pairs = [(f, state(world, rng, theme, f)) for group in groups for f in group]
    memory, stretches = place(world, rng, [s for _, s in pairs])
    begins, questions = np.cumsum([0] + [len(g) for g in groups]), []
    for at, group in list(zip(begins, groups)) * times(groups, 24):
        mine = sorted(pairs[at:at + len(group)], key=lambda p: -p[1].position)
        golds = [s.gold(memory) for _, s in mine]
        later = [set().union(*golds[i + 1:]) for i in range(len(golds))]
        fact = group[0]
        if theme.style == 'sentence':
            text = around(rng, theme, facts.fill(rng.choice(rng.choice((EVERY_VALUE, wordings.LISTED['every']))), fact)[0])
        else:
            text = theme.ask(rng, fact) + rng.choice((' (all)', ' Name all.', ' List all values.'))
        questions.append(listing(world, world.tokenizer.encode(text), memory, [f.value for f, _ in mine], [s for _, s in mine], later))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


def updates(world, rng, theme):
    """Facts that change: asked for the newest value, and for what it was before."""
    theme = theme if theme.style == 'sentence' else facts.theme(rng, world.lex, style='sentence', fragments=theme.fragments)
    statements, old, new, said = [], [], [], []    # said: that it is a change, or nothing tells what was before
    for _ in range(rng.choice((4, 8, 14))):
        first = theme.fact(rng)
        second = facts.Fact(first.style, first.relation, first.key, '', words.VALUES[rng.choice(theme.value_shapes)](rng, world.lex))
        old.append((first, state(world, rng, theme, first)))
        frames = rng.choices((facts.CHANGES[:-2], wordings.LISTED['change'], facts.CHANGES[-2:], None), (5, 7, 2, 7))[0]
        new.append((second, state(world, rng, theme, second, frames)))
        said.append(frames in (facts.CHANGES[:-2], wordings.LISTED['change']))
    statements = [s for _, s in rng.sample(old, len(old))] + [s for _, s in rng.sample(new, len(new))]
    memory, stretches = place(world, rng, statements, in_order=True)
    questions = []
    for (first, a), (second, b), is_said in list(zip(old, new, said)) * times(old):
        before = is_said and rng.random() < 0.4
        asked = (facts.BEFORE_QUESTIONS, wordings.LISTED['before']) if before else (None, None, wordings.LISTED['now'])
        text = theme.ask(rng, first, rng.choice(asked))
        fact, holder, ignored = (first, a, set()) if before else (second, b, a.gold(memory))
        questions.append(Question(world.tokenizer.encode(text), told(world, memory, [fact.value], [holder], [ignored])))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


ASSIGN = ('VAR {a} = {b}', '{a} = {b}', 'let {a} = {b};', 'Set {a} to {b}.', '{a} is the same as {b}.', 'VAR {a} = VAR {b}', '{a} := {b}', 'The value of {a} is {b}.')
CHAIN_ALL = ('Find all variables that are assigned the value {v}.', 'Which variables have the value {v}?', 'variables equal to {v}')
CHAIN_VALUE = ('What is the value of {v}?', 'Trace {v}.', 'Follow {v} to its value.')


def chains(world, rng, theme):
    """Variable tracking: X1 = 12345, X2 = X1, X3 = X2. Asked which hold a value, or to follow one to its value."""
    name = rng.choice((lambda: words.letters(rng, 4, 6), lambda: words.pseudo_word(rng), lambda: f'{rng.choice(world.lex.words)}_{rng.choice(world.lex.words)}',
                       lambda: f'{rng.choice(world.lex.words)} {rng.choice(world.lex.nouns)}'))
    frames, all_chains = rng.sample(ASSIGN, rng.choice((1, 2))), []
    for _ in range(rng.choice((3, 6, 9))):
        values = [words.digits(rng, 5, 6)] + [name() for _ in range(rng.randint(2, 5))]
        links = []
        for a, b in zip(values[1:], values):
            frame = rng.choice(frames) if b != values[0] else rng.choice(frames).replace('VAR {b}', '{b}')
            text = frame.replace('{a}', '\0').replace('{b}', b).replace('\0', a)
            links.append(Statement(world.tokenizer, text, [0], text))
        all_chains.append((values, links))
    tracks, order = [list(links) for _, links in all_chains], []
    while any(tracks):
        order.append(rng.choice([t for t in tracks if t]).pop(0))
    memory, stretches = place(world, rng, order, in_order=True)
    questions = []
    for values, links in all_chains * times(all_chains, 16):
        golds = [s.gold(memory) for s in links]
        if rng.random() < 0.6:
            text = around(rng, theme, rng.choice(rng.choice((CHAIN_ALL, wordings.LISTED['chain']))).replace('{v}', values[0]))
            questions.append(Question(world.tokenizer.encode(text), answer_parts(world.tokenizer, values[1:], golds, separator=LISTED), listed=True))
        asked = rng.randint(1, len(values) - 1)
        questions.append(Question(world.tokenizer.encode(rng.choice(CHAIN_VALUE).replace('{v}', values[asked])),
                                  answer_parts(world.tokenizer, values[asked - 1::-1], golds[asked - 1::-1], separator=' = ')))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


def two_hops(world, rng, theme):
    """"What is the phone number of the owner of K?": answered with the bridge and the value, "Anna, 5550123"."""
    first, second = facts.relation(rng, world.lex), facts.relation(rng, world.lex)
    frames, made = rng.sample(facts.SENTENCES, 3), []
    for _ in range(rng.choice((4, 8, 14))):
        bridge = words.person(rng, world.lex)
        a = facts.Fact('sentence', first, words.KEYS[rng.choice(theme.key_shapes) if theme.key_shapes[0] in words.KEYS else 'pseudo'](rng, world.lex), '', bridge)
        b = facts.Fact('sentence', second, bridge, '', words.VALUES[rng.choice(theme.value_shapes)](rng, world.lex))
        made.append([(f, Statement(world.tokenizer, *facts.fill(rng.choice(frames), f), f.value)) for f in (a, b)])
    memory, stretches = place(world, rng, [s for pair in made for _, s in pair])
    questions = []
    for (a, s), (b, t) in made:
        text = rng.choice(('What is the {R} of the {Q} of {K}?', '{R} of the {Q} of {K}', "What is the {R} of {K}'s {Q}?"))
        text = text.replace('{R}', second).replace('{Q}', first).replace('{K}', a.key)
        questions.append(Question(world.tokenizer.encode(text), told(world, memory, [a.value, b.value], [s, t])))
    return memory, questions + about_text(world, rng, memory, stretches, max(4, QUESTIONS_MAX - len(questions)))


def text_questions(world, rng, theme):
    """Real text alone, asked for verbatim continuation and by keywords."""
    memory, stretches = place(world, rng, [])
    return memory, about_text(world, rng, memory, stretches, 40)


def real_questions(world, rng, theme):
    """Passages of the question sets and their questions."""
    return world.question_sets.memory_and_questions(world, rng)


def dialogue(world, rng, theme):
    """Who said what, and what came next, in real dialogues."""
    return world.question_sets.dialogue(world, rng)


TASKS = {single: 0.31, multi_query: 0.13, multi_value: 0.16, updates: 0.10, chains: 0.10, two_hops: 0.01, text_questions: 0.05,
         real_questions: 0.12, dialogue: 0.02}
TEXT_SHARE = 0.08                # rows that are plain language modelling


def text_row(world, rng):
    """Language modelling: the reader continues the memory, at times from a document token on, with which the engine begins a text that
    it scores. At times part of the memory is of another document."""
    text = world.corpus.window(rng, world.memory_tokens + world.reader_tokens + 1)
    memory, other = world.memory(), 0
    if rng.random() < 0.5:
        other = world.chunk_size * rng.randint(1, world.memory_tokens // world.chunk_size)
        memory.append(world.corpus.window(rng, other))
        memory.segment += 1
    if other < world.memory_tokens:
        memory.append(text[other:world.memory_tokens])
    reader = text[world.memory_tokens:]
    if rng.random() < 0.4:
        reader = np.concatenate([[world.tokenizer.document], reader[:-1]])
    return finish_text_row(memory, reader, world.reader_tokens, world.memory_tokens // world.chunk_size)


def batch_rows(world, rng, count):
    """`count` rows. Their facts share a few themes, so that the rows are hard negatives for one another."""
    fragments = [text for _ in range(150) if (text := world.tokenizer.decode(world.corpus.window(rng, 16)).replace('\n', ' ').strip())]
    themes, rows = [facts.theme(rng, world.lex, fragments=fragments) for _ in range(rng.choice((1, 2, 4)))], []
    tasks = [t for t in TASKS if world.question_sets or t not in (real_questions, dialogue)]
    while len(rows) < count:
        if rng.random() < TEXT_SHARE:
            rows.append(text_row(world, rng))
            continue
        task = rng.choices(tasks, [TASKS[t] for t in tasks])[0]
        memory, questions = task(world, rng, rng.choice(themes))
        for question in questions:
            question.kind = question.kind or task.__name__
        if memory.length < world.memory_tokens:                  # never a chunk of padding alone
            memory.append(world.corpus.window(rng, memory.room))
        rows.append(finish_row(world.tokenizer, memory, questions, world.reader_tokens))
    return rows
