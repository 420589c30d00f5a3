"""Composed wordings: statements and questions from a small grammar, so that no list of frames can be learned by heart; and written
ones (frames/), each put down on its own by somebody who had not seen the others, whose syntax no grammar has.

A frame has the slots of facts.py ({K}, {R}, {V}, {C}). A pattern names word lists in angle brackets; lists may name lists.
None of the held-out frames of facts.py can come out: their turns of phrase (HELD_OUT_TURNS) are in no list."""
import re
from pathlib import Path

HELD_OUT_TURNS = ('one of the special magic', 'in the register', 'whenever the', 'comes up', 'this spring', 'on the label', 'one could read',
                  'provided text', 'somebody asks', 'under which', 'i forgot', 'what was it again', ':=', '#define', 'entry ', ' reads ', 'if you ask',
                  'minutes,', 'from the point of view', 'stands next to', 'read me')

LISTS = {
    'paper': '''ledger;list;notebook;file;table;archive;index;catalogue;report;sheet;log;manual;letter;contract;database;inventory;memo;appendix;card;
        form;schedule;receipt;message;email;folder;poster;diary;spreadsheet;old book;brochure;certificate;plan;directory''',
    'place': '''desk;wall;door;shelf in the hall;screen;back of the page;first page;last page;board;box;cover;map;envelope;ticket;badge;plate;tin;crate;
        notice by the stairs;slip of paper;sign;sticker;third line;top of the form;bill''',
    'who': '''she;he;they;we;I;the clerk;my sister;our guide;the captain;someone;the teacher;a neighbour;the old man;the committee;the operator;her uncle;
        the engineer;the office;the guard;{N};the librarian;everybody;the second witness;my colleague;the manager;two of them''',
    'whom': 'me;us;them;him;her;everyone;the others;the crew;the class;you;the whole team',
    'said': '''said;wrote;insisted;mentioned;recalled;claimed;noted;explained;added;repeated;told <whom>;informed <whom>;confirmed;announced;reported;
        swore;remembered;let <whom> know;decided''',
    'when': '''this year;last week;since Monday;in the autumn;yesterday;from today;a while ago;during the winter;at noon;in March;on the second day;
        after the meeting;before lunch;long ago;this morning;recently;by then;for now;at the time;in the end;until further notice;again''',
    'of': 'of;of;for;of;for;belonging to;that goes with;given to;assigned to;used for;kept for;set for;linked to;chosen for',
    'is': '''is;is;is;was;was;says;remains;became;turned out to be;equals;happens to be;has been;should be;must be;is still;is said to be;will be;
        is now;is simply;is written as''',
    'has': '''has;has;carries;bears;holds;keeps;received;got;uses;takes;shows;features;displays;goes by;works with;is listed with;is filed with;was issued;
        is entered with;comes with;was recorded with;answers to;was left with;ended up with;is known by;is marked''',
    'gave': 'gave;gave;assigned;issued;handed;offered;left;sent;granted;passed;attached;wrote down for',
    'as': 'as;as;for;under;in the column;beside;in the field;next to;by way of;as its;as their;as the;in place of',
    'use': 'use;take;type;write;enter;say;give;choose;pick;put down;quote;try;send;answer with;expect;look for',
    'need': 'need;want;seek;look up;search for;require;mention;check;must find;hear about;deal with;care about;have to give;are asked for',
    'if': 'if;when;once;should;as soon as;in case;each time;every time;where',
    'lead': '''{};{};{};so;and;but;also;note that;please note:;remember:;PS:;by the way,;to be clear,;in short,;first of all,;as agreed,;for the record,;
        as <who> <said>,;according to the <paper>,;in the <paper>,;on the <place>,;<when>,;the <paper> says that;<who> <said> that;<who> <said>:;
        it <is> known that;I think that;we found that;it says here that;there it was:;FYI,;update,;''',
    'tail': '''{};{};{};{};{}; <when>; in the <paper>; on the <place>;, as <who> <said>;, said <who>; and nothing else;, I believe;, it seems; (see the <paper>);
        , as the <paper> shows;, and that is all;, so <who> <said>; indeed; instead of the other one;, as always''',
    'end': '.;.;.;.;{};!;...;,',
    'ask': '''what;what;which;what exactly;just what;tell <whom> what;say which;do you know what;can you tell me which;does anyone know what;I wonder what;
        remind me what;I would like to know which;find out what;please say what;could you look up which''',
    'want': 'wants to know;needs;asked for;is looking for;would like;has to know;inquires about;is after;misses;cannot find;must have',
    'get': 'tell me;give me;find;look up;show me;say;name;bring me;recall;repeat;state;fetch;quote;spell out',
    'thatis': 'that is;i.e.;to be exact,;precisely;specifically;which is;in other words,;it is;it being;called;and it is;to wit;known as;for short;simply',
    'got': 'received;got;obtained;acquired;chose;was assigned;was issued;bought;picked;made;took;adopted;inherited;accepted;found;ordered',
    'new': 'new;second;different;better;fresh;temporary;longer;own;proper;final;special;secret;other;first;current;valid;official;spare',
    'matters': '''is mentioned;is needed;matters;is missing;is asked about;turns up;is wanted;appears;is due;has to be given;is spoken of;is checked;arrives;
        is in question;must be shown;is called for;is read out;is at stake;becomes important''',
    'seen': 'saw;found;noticed;discovered;could see;made out;spotted;was shown;came across;had written;had put;read;recognised;counted',
    'stood': 'stood;was printed;was written;is engraved;was painted;hung;is pinned;appeared;was hidden;lies;was carved;is stored;was stamped',
    'listed': 'stands;is listed;is found;was entered;is kept;goes;appears again;is noted;was put down;is filed;is recorded;belongs;shows up;sits',
    'topic': '''this is about {K};we have {K} here;I am looking at {K};let us talk about {K};take {K};<who> <said> something about {K};{K} was mentioned;
        it concerns {K};think of {K};{K}, please;a word on {K};now to {K};here comes {K};regarding {K};I met {K};<who> called because of {K};next is {K};
        they sent us {K};I have a question on {K};you know {K};there is {K}, for instance;someone wants {K}''',
    'follow': '''<ask> {R} does it have;<ask> is its {R};the {R}, please;<get> its {R};<ask> {R} belongs to it;<ask> {R} goes with that;<ask> {R} do I note;and the {R};
        what would be the {R};<ask> {R} was it;is there a {R};how about the {R};I need its {R};<ask> {R} must I enter;tell me that {R};say the {R};
        <ask> {R} did <who> write down;<ask> is the {R} again''',
    'prefix': 'def;let;set;const;put;key;field;row;item;var;@;%;$;+;*;1.;a);->;name;#;--;>;!;&;the;my;no.;see;for;of;to;from;in',
    'sign': '''=;->;|;::;=>;--;..;~;>>;&;@;+;<-;:-;==;:;,;-;as;is;was;means;gives;becomes;equals;stands for;refers to;maps to;has;gets;holds;yields;makes;
        returns;denotes;hides;stores;names;says;translates to;corresponds to;points at;comes to;amounts to;results in;signifies;opens;follows''',
    'close': '{};{};{};{}; now; again; please; exactly; then; at present; in the text; in the <paper>; on the <place>; according to the <paper>; here; do you think',
}
STATEMENTS = {
    'sentence': '''<lead> the {R} <of> {K} <is> {V}<tail><end>;<lead> {K} <has> {V} <as> {R}<tail><end>;<lead> <use> {V} <if> you <need> the {R} <of> {K}<tail><end>;
        <if> you <need> the {R} <of> {K}, <use> {V}<tail><end>;<lead> {V} <is> the {R} <of> {K}<tail><end>;<lead> {V} <is> what {K} <has> <as> {R}<tail><end>;
        <who> <gave> {K} {V} <as> {R}<tail><end>;<who> <gave> {V} to {K} <as> {R}<tail><end>;<lead> {K} and its {R}, {V}<tail><end>;
        <lead> as {R} <of> {K}, <who> <said> {V}<tail><end>;<lead> {K}'s {R} <is> {V}<tail><end>;<lead> {K} was <said> to have {V}, its {R}<tail><end>;
        <who> <said> that {K} <has> the {R} {V}<tail><end>;{V}<tail>, and that <is> the {R} <of> {K}<end>;the <paper> has {V} in the row {K} and the column {R}<end>;
        <lead> {R}: {V}, {K}<tail><end>;{K} <when>: {R} {V}<end>;<lead> {K} changed its {R} to {V}<tail><end>;<lead> the {R} that {K} <has> <is> {V}<tail><end>;
        <lead> for {K} <who> <said> {V} when asked about the {R}<end>;{V} <lead> it <is> the {R} <when> of {K}<end>;{R}={V} ({K});{K}: {V} ({R});{V}: {R}, {K};
        <lead> <who> saw {V} <as> {R} on {K}<tail><end>;<lead> with {V} <as> {R}, {K} was ready<tail><end>;<lead> they <gave> the {R} {V} to {K}<tail><end>;
        <lead> {K} <got> a <new> {R} <when>, <thatis> {V}<tail><end>;<lead> {K} <got> the <new> {R} {V} <when><end>;<when> {K} <got> its <new> {R}, <thatis> {V}<tail><end>;
        <use> {V} <if> the {R} <of> {K} <matters><tail><end>;<if> the {R} <of> {K} <matters>, <use> {V}<end>;<lead> <use> {V} as soon as {K} <matters> and a {R} is wanted<end>;
        on the <place> of {K} <who> <seen> the {R} {V}<tail><end>;<who> <seen> {V} on the <place> of {K} <as> {R}<end>;the {R} {V} <stood> on the <place> of {K}<end>;
        {V} <stood> on the <place> of {K} <as> {R}<tail><end>;in the <paper> {K} <listed> with {V} <as> {R}<end>;{K} <listed> with the {R} {V} in the <paper><end>;
        {K} <listed> <when> in the <paper>, its {R} <thatis> {V}<end>;{V} <listed> in the <paper> <as> {R} <of> {K}<tail><end>;<who> <said> "{V}" <if> <who> <need> the {R} <of> {K};
        <who> <said>: {V}, when the {R} <of> {K} <matters><end>;{K} has a <new> {R}: {V}<tail><end>;my <new> {R} for {K}, <thatis> {V}, <is> here<end>;
        nobody knew that {V} <is> the {R} <of> {K}<tail><end>;from <who> we have {V} <as> the <new> {R} <of> {K}<end>;{R} {V} was <said> for {K}<end>''',
    'record': '''{K} <is> {V}<end>;{K} <has> {V}<end>;<lead> {K} <is> {V}<tail><end>;{K} .. {V};{K} | {V};[{K}] {V};{K} ~ {V};{V} <- {K};<lead> {V} <is> {K}<tail><end>;
        <use> {V} for {K}<end>;{K}, that <is> {V}<tail><end>;<who> <gave> {K} {V}<tail><end>;{K} ({V});({K}, {V});{K}\t{V}\t<when>;{V}, the <paper> says, is for {K}<end>;
        <paper>: {K}: {V};set {K} to {V};no. 1: {K} {V};<lead> {V} goes with {K}<tail><end>;see {V} for {K}<end>;
        {K} <sign> {V};{K} <sign> {V}<end>;{K}<sign>{V};<prefix> {K} <sign> {V};<prefix> {K} <sign> {V}<end>;{K} <sign> <sign> {V};<prefix> {K} {V};<paper> {K} <sign> {V};
        {K} <sign> {V} <sign>;<lead> {K} <sign> {V}<tail><end>;{V} <sign> {K};in the <paper> {K} <sign> {V}<end>;line {K} <sign> {V};{K}, in the <paper>, <sign> {V}<end>;
        the <paper> <has> {V} for {K}<end>;the item {K} <sign> {V}<end>''',
    'context': '''<lead> in {C} the {R} <of> {K} <is> {V}<tail><end>;{C} <gave> {K} {V} <as> {R}<tail><end>;{C} <said> that {K} <has> {V} <as> {R}<end>;
        <lead> with {C}, {K} <has> {V} <as> {R}<tail><end>;{V} <is> the {R} <of> {K} in {C}<tail><end>;{C}: {K}: {R}: {V};{K} ({C}): {V} <as> {R};
        <if> {C} <is> meant, the {R} <of> {K} <is> {V}<end>;<lead> {K} <has> the {R} {V}, {C} <said><end>;{C} / {R} / {K} = {V};
        <use> {V} <as> {R} <of> {K} when you are with {C}<end>;for {C}: {V} ({R}, {K})''',
}
QUESTIONS = {
    'sentence': '''<ask> the {R} <of> {K} <is><close>;<ask> {R} {K} <has><close>;<ask> is the {R} <of> {K}<close>;<get> the {R} <of> {K}<close>;<who> <want> the {R} <of> {K}<close>;
        {K}'s {R}<close>;{K}: which {R}<close>;<if> I <need> the {R} <of> {K}, what do I <use><close>;<ask> should I <use> as {R} for {K}<close>;{R}, {K}<close>;
        <who> <said> something about the {R} <of> {K}, what was it;how <is> the {R} <of> {K} given<close>;<ask> {R} was <gave> to {K}<close>;about {K}: the {R};
        does {K} have a {R}<close>;the {R} that {K} <has><close>;<get> {K}'s {R}<close>;with which {R} does {K} work<close>;
        I have {K} and <need> the {R}<close>;<ask> did <who> <use> as {R} <of> {K};{K} <has> as {R};complete: the {R} <of> {K} <is>;
        <topic>. <follow>;<topic>. <follow><close>;<topic>: <follow>;<topic>, <follow>;with what {R} did <who> <seen> {K};at which {R} can <who> find {K};
        through which {R} <is> {K} reached;for {K} I <need> a {R}, which one;<who> <want> {K} and its {R}, <get> it;I lost the {R} <of> {K}<close>;
        <who> lost {K}'s {R}, what was it;<if> the {R} <of> {K} <matters>, what do I say;<ask> <new> {R} {K} <got><close>;<ask> {R} <stood> on the <place> of {K}''',
    'record': '''<ask> {K} <is><close>;<get> {K}<close>;{K}<close>;<ask> goes with {K}<close>;<ask> belongs to {K}<close>;<ask> {K} <has><close>;<who> <want> {K}<close>;
        <if> I <need> {K}, what do I <use><close>;value for {K}<close>;{K} <is>;about {K};<topic>;{K} <sign>;<prefix> {K};<prefix> {K} <sign>;what does {K} <sign>;<ask> does the <paper> say for {K};
        what comes after {K}<close>;what follows {K};open {K};load {K};<get> the line of {K};which line belongs to {K};print {K};search {K};<ask> did <who> write for {K}<close>''',
    'context': '''<ask> {R} {K} <has> in {C}<close>;<get> the {R} <of> {K} for {C}<close>;{C}, {K}, {R}<close>;<ask> {C} <said> about the {R} <of> {K}<close>;
        in {C}, <ask> {R} <is> that of {K};with {C}: {K}'s {R};the {R} <of> {K} according to {C}<close>;{R} <of> {K} ({C})<close>''',
}


def _split(text):
    """Alternatives between semicolons; {} stands for nothing. A space before one belongs to it, line breaks do not."""
    parts = [re.sub(r'\n *', '', part) for part in text.split(';')]
    return ['' if part == '{}' else part for part in parts if part]


LISTS = {name: _split(text) for name, text in LISTS.items()}
STATEMENTS = {style: _split(text) for style, text in STATEMENTS.items()}
QUESTIONS = {style: _split(text) for style, text in QUESTIONS.items()}


def _lines(name):
    return (Path(__file__).parent / 'frames' / f'{name}.txt').read_text(encoding='utf-8').splitlines()


# Words that may stand beside a value, so that none of them is taken for it.
BEFORE_VALUE = """simply;merely;just;only;exactly;precisely;specifically;officially;currently;presumably;allegedly;apparently;actually;clearly;plainly;
    notably;chiefly;formally;supposedly;evidently;certainly;probably;finally;initially;previously;nowadays;again;indeed;of course;no less than;
    none other than;nothing else than;namely;something like;as it were;so to speak;in fact;at last;for once;by definition;needless to say;once more;
    to everyone's surprise;in plain words;word for word;more or less;that means;viz.;videlicet;which means;what else;the one and only;a certain;
    good old;the well-known;the usual;the dreaded;our beloved;plain;mere;sheer;proper;solely;purely;oddly;curiously;strangely;sadly;luckily;
    happily;rightly;wrongly;quietly;secretly;openly;publicly;jointly;always;never again;mostly;usually;largely;barely;hardly;still;yet;even;
    also;too;rather;quite;perhaps;maybe;obviously;undoubtedly;reportedly;literally""".replace('\n', '').split(';')
BEFORE_VALUE = [' '.join(word.split()) for word in BEFORE_VALUE]


def beside_value(rng, frame):
    """The frame with a word before its value, where one fits."""
    places = [m.start() for m in re.finditer(r'(?<=[a-z}:,] ){V}', frame)]
    if not places:
        return frame
    at = rng.choice(places)
    return frame[:at] + rng.choice(BEFORE_VALUE) + rng.choice((' ', ' ', ' ', ', ')) + frame[at:]


WRITTEN = {style: (_lines(f'{style}.statements'), _lines(f'{style}.questions')) for style in STATEMENTS}
LISTED = {kind: [line.split('\t', 1)[1] for line in _lines('lists') if line.startswith(f'{kind}\t')] for kind in
          ('every', 'several', 'chain', 'change', 'before', 'now')}


def written(rng, style, asking):
    """A written frame: a statement, or a question."""
    return rng.choice(WRITTEN[style][asking])


def expand(rng, pattern, name):
    """A pattern with its lists filled in; name(): somebody's name."""
    while '<' in pattern and (found := re.search(r'<([a-z]+)>', pattern)):
        pattern = pattern[:found.start()] + rng.choice(LISTS[found.group(1)]) + pattern[found.end():]
    return re.sub(r' +', ' ', pattern.replace('{N}', name())).strip()


def frame(rng, style, asking, name):
    """A composed frame: a statement, or a question."""
    text = expand(rng, rng.choice((QUESTIONS if asking else STATEMENTS)[style]), name)
    if asking and rng.random() < 0.6:
        text += '?'
    if rng.random() < 0.5 and not text.startswith('{'):
        text = text[0].upper() + text[1:]
    return text
