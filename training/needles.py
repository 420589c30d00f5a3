"""Facts for evaluation: from templates, key shapes, relations and words that training never used.

A Needle is a question with the statements that answer it. Families after RULER (arXiv 2404.06654); `dense` is our own:
one similar fact in every segment of a memory, all of one theme."""
from dataclasses import dataclass

from training import facts, words
from training.tasks import LISTED, Statement, answer_parts


@dataclass
class Needle:
    family: str
    statements: list             # [Statement]; those of the answer, and distractors
    prompt: list                 # token ids between <q> and <a>
    values: list                 # answer, in order
    holders: list                # for each value, the statements that hold it
    newest_first: bool = False   # values are told by falling position of their holder
    separator: str = ', '

    def parts(self, tokenizer, memory):
        """[Part] of the answer, once the statements have positions. memory: anything with chunks(first, last)."""
        pairs = list(zip(self.values, self.holders))
        if self.newest_first:
            pairs.sort(key=lambda p: -p[1].position)
        return answer_parts(tokenizer, [v for v, _ in pairs], [s.gold(memory) for _, s in pairs], separator=self.separator)


def held_out_theme(rng, lex, style='sentence', near=0.3):
    """A theme of held-out material with everything in play: all its frames and shapes."""
    made = facts.theme(rng, lex, held_out=True, style=style)
    made.lex, made.near = lex, near
    made.key_shapes = list(words.HELD_OUT_KEYS)
    made.value_shapes = ['digits', 'digits5', 'code', 'word', 'two words', 'date', 'person', 'phone']
    made.frames, made.questions = {'sentence': (facts.HELD_OUT_SENTENCES, facts.HELD_OUT_QUESTIONS),
                                   'record': (facts.HELD_OUT_RECORDS, facts.HELD_OUT_RECORD_QUESTIONS),
                                   'context': (facts.HELD_OUT_IN_CONTEXT, facts.HELD_OUT_CONTEXT_QUESTIONS)}[style]
    made.relations = [facts.relation(rng, lex, True) for _ in range(40)]
    return made


class Maker:
    """Makes needles of each family with one tokenizer."""

    def __init__(self, tokenizer, lex, rng):
        self.tokenizer, self.lex, self.rng = tokenizer, lex, rng
        self.sentence, self.record, self.context = (held_out_theme(rng, lex, s) for s in ('sentence', 'record', 'context'))
        self.families = {'passkey': self.passkey, 'single': self.single, 'multi_key': self.multi_key, 'multi_value': self.multi_value,
                         'multi_query': self.multi_query, 'variable_tracking': self.variable_tracking, 'joint': self.joint,
                         'update': self.update, 'record': self.records}

    def state(self, theme, fact, frames=None):
        text, starts = theme.state(self.rng, fact, frames)
        return Statement(self.tokenizer, text, starts, fact.value)

    def one(self, family, theme, fact, statement, distractors=()):
        return Needle(family, [statement, *distractors], self.tokenizer.encode(theme.ask(self.rng, fact)), [fact.value], [statement])

    def passkey(self):
        """RULER's pass key sentence; the key makes 64 questions about one memory possible."""
        fact = facts.Fact('sentence', 'pass key', self.sentence.fact(self.rng, fresh=True).key, '', words.digits(self.rng, 5, 6))
        text, starts = facts.fill('The pass key for {K} is {V}. Remember it. {V} is the pass key for {K}.', fact)
        question = facts.fill('What is the pass key for {K}? The pass key is', fact)[0]
        statement = Statement(self.tokenizer, text, starts, fact.value)
        return Needle('passkey', [statement], self.tokenizer.encode(question), [fact.value], [statement])

    def single(self):
        """A key of its own, as in RULER's single needle: near-duplicates are multi_key's and dense's."""
        fact = self.sentence.fact(self.rng, fresh=True)
        return self.one('single', self.sentence, fact, self.state(self.sentence, fact))

    def multi_key(self):
        """Four near-duplicates of the key beside the one that is asked for."""
        fact = self.sentence.fact(self.rng)
        others = [facts.Fact('sentence', fact.relation, words.near_duplicate(self.rng, self.lex, fact.key), '', self.sentence.fact(self.rng).value)
                  for _ in range(4)]
        return self.one('multi_key', self.sentence, fact, self.state(self.sentence, fact),
                        [self.state(self.sentence, f) for f in others if self.sentence.take(f)])

    def multi_value(self):
        fact = self.sentence.fact(self.rng)
        values = [fact.value] + [words.digits(self.rng, 5, 7) for _ in range(2)]
        statements = [self.state(self.sentence, facts.Fact('sentence', fact.relation, fact.key, '', v)) for v in values]
        text = facts.fill('What are all the special magic {R}s for {K} mentioned in the provided text?', fact)[0]
        return Needle('multi_value', statements, self.tokenizer.encode(text), values, statements, newest_first=True, separator=LISTED)

    def multi_query(self):
        made = [self.sentence.fact(self.rng)]
        made += [self.sentence.fact(self.rng, relation=made[0].relation) for _ in range(2)]
        statements = [self.state(self.sentence, f) for f in made]
        text = (f'What are the special magic {made[0].relation}s for {made[0].key}, {made[1].key} and {made[2].key} '
                'mentioned in the provided text?')
        return Needle('multi_query', statements, self.tokenizer.encode(text), [f.value for f in made], statements, separator=LISTED)

    def variable_tracking(self):
        """RULER's wording (training has other names and other sentences besides)."""
        values = [words.digits(self.rng, 5, 5)] + [words.letters(self.rng, 5, 5) for _ in range(4)]
        texts = [f'VAR {a} = {"" if b == values[0] else "VAR "}{b}' for a, b in zip(values[1:], values)]
        statements = [Statement(self.tokenizer, t, [0], t) for t in texts]
        text = f'Find all variables that are assigned the value {values[0]} in the text above.'
        return Needle('variable_tracking', statements, self.tokenizer.encode(text), values[1:], statements, separator=LISTED)

    def joint(self):
        """One key and relation, other values in other contexts."""
        fact = self.context.fact(self.rng)
        others = [facts.Fact('context', fact.relation, fact.key, c, self.context.fact(self.rng).value)
                  for c in self.rng.sample(self.context.contexts, min(3, len(self.context.contexts))) if c != fact.context]
        return self.one('joint', self.context, fact, self.state(self.context, fact), [self.state(self.context, f) for f in others if self.context.take(f)])

    def update(self):
        """The first statement in document order is out of date. (Placed in the order given.)"""
        old = self.sentence.fact(self.rng)
        new = facts.Fact('sentence', old.relation, old.key, '', words.digits(self.rng, 5, 7))
        first, second = self.state(self.sentence, old), self.state(self.sentence, new, facts.CHANGES)
        return Needle('update', [first, second], self.tokenizer.encode(self.sentence.ask(self.rng, new)), [new.value], [second])

    def records(self):
        fact = self.record.fact(self.rng)
        return self.one('record', self.record, fact, self.state(self.record, fact))


def dense_needles(tokenizer, lex, rng, count, family='dense'):
    """`count` single-statement needles of one theme and a mixture of held-out frames, those of the family (facts.DENSE), near-duplicate
    keys among them."""
    theme = held_out_theme(rng, lex, near=0.25)
    theme.frames, theme.questions = facts.DENSE[family]
    if family == 'dense, blind wordings':
        theme.relations = facts.BLIND_RELATIONS
    theme.value_shapes = ['digits5', 'digits', 'word', 'code']
    maker = Maker(tokenizer, lex, rng)
    made = [theme.fact(rng) for _ in range(count)]
    return [maker.one(family, theme, f, maker.state(theme, f)) for f in made]
