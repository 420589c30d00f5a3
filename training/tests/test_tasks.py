"""Generated tasks: what is asked can be answered from the chunks that are called gold."""
import random
import re
import unittest

import numpy as np

from training.tests.fixtures import needs_torch, prepared

COMMON = set('the of for in a to is it was what which and with that its has i one on by as at'.split())


def turns(text):
    """Three telling words in a row, or among four: neither common ones, nor slots, nor signs."""
    tokens = re.findall(r"\{\w\}(?:'s|s)?|[\w']+|[^\w\s]", text.lower())
    telling = [t not in COMMON and re.match(r'\w', t) is not None for t in tokens]
    return {tuple(tokens[i:i + n]) for n in (3, 4) for i in range(len(tokens) - n + 1) if sum(telling[i:i + n]) >= 3}


@needs_torch
class TasksTest(unittest.TestCase):
    def setUp(self):
        from training.batches import open_world
        from training.config import Config
        self.world = open_world(prepared(), Config(), reader_tokens=512, row_tokens=2048)

    def test_gold_chunks_hold_the_value(self):
        from training import facts, tasks
        rng = random.Random(5)
        for task in (tasks.single, tasks.multi_query, tasks.multi_value, tasks.chains, tasks.two_hops):
            memory, questions = task(self.world, rng, facts.theme(rng, self.world.lex))
            for question in questions:
                for part in question.parts:
                    if not part.gold or max(part.gold) >= self.world.memory_tokens // 64:
                        continue
                    held = ''.join(self.world.tokenizer.decode(memory.array()[c * 64:(c + 1) * 64]) for c in sorted(part.gold))
                    answer = self.world.tokenizer.decode(part.ids).strip(' ,=\n')
                    self.assertIn(answer.replace(' ', ''), held.replace(' ', ''), f'{task.__name__}, seed 5')

    def test_every_task_fills_a_row(self):
        from training import facts, tasks
        rng = random.Random(7)
        for task in tasks.TASKS:
            memory, questions = task(self.world, rng, facts.theme(rng, self.world.lex))
            if memory.length < self.world.memory_tokens:
                memory.append(self.world.corpus.window(rng, memory.room))
            row = tasks.finish_row(self.world.tokenizer, memory, questions, self.world.reader_tokens)
            self.assertEqual(len(row.memory), self.world.memory_tokens, task.__name__)
            self.assertEqual(row.gold.shape, (512, self.world.memory_tokens // 64))
            self.assertTrue((row.query == 1).any(), task.__name__)
            without = (row.query > 0) & ~(row.gold == 1).any(-1)
            self.assertTrue((row.label[without] == self.world.tokenizer.document).all(), f'{task.__name__}: only the end of a list has no gold')
            self.assertEqual(without.any(), any(q.listed for q in questions), task.__name__)

    def test_no_statement_crosses_a_segment(self):
        from training import facts, tasks
        rng, several = random.Random(11), 0
        for _ in range(12):
            theme = facts.theme(rng, self.world.lex)
            statements = [tasks.state(self.world, rng, theme, theme.fact(rng)) for _ in range(8)]
            memory, stretches = tasks.place(self.world, rng, statements)
            segment = np.concatenate(memory.segments)
            begins = (segment[1:] != segment[:-1]).nonzero()[0] + 1
            self.assertTrue((begins % memory.chunk_size == 0).all())
            for position, ids in [*stretches, *((s.position, s.ids) for s in statements)]:
                np.testing.assert_array_equal(np.concatenate(memory.ids)[position:position + len(ids)], ids)
                self.assertEqual(len(set(segment[position:position + len(ids)].tolist())), 1)
            several += len(begins) > 0
        self.assertGreater(several, 4)
        self.assertLess(several, 12)

    def test_reader_state_restarts_at_every_question(self):
        from training import tasks
        rng = random.Random(3)
        row = next(r for r in tasks.batch_rows(self.world, rng, 8) if (r.query == 1).sum() > 2)
        starts = row.reader == self.world.tokenizer.question
        self.assertTrue((row.reader_segment[1:][starts[1:]] != row.reader_segment[:-1][starts[1:]]).all())

    def test_held_out_material_is_not_in_training_themes(self):
        from training import facts, words
        rng = random.Random(1)
        for _ in range(200):
            theme = facts.theme(rng, self.world.lex)
            self.assertFalse(set(theme.frames) & set(facts.HELD_OUT_SENTENCES + facts.FRESH_SENTENCES + facts.BLIND_SENTENCES + facts.HELD_OUT_RECORDS + facts.HELD_OUT_IN_CONTEXT))
            self.assertFalse(set(theme.key_shapes) & set(words.HELD_OUT_KEYS))
            self.assertFalse(set(theme.relations) & set(facts.HELD_OUT_RELATIONS + facts.BLIND_RELATIONS))

    def test_composed_wordings_have_their_slots_and_nothing_of_the_held_out_ones(self):
        from training import wordings
        rng, made = random.Random(4), set()
        for style in wordings.STATEMENTS:
            for asking in (False, True):
                slots = {'sentence': ['{R}', '{K}'], 'record': ['{K}'], 'context': ['{R}', '{K}', '{C}']}[style] + ['{V}'] * (not asking)
                for _ in range(3000):
                    text = wordings.frame(rng, style, asking, lambda: 'Anna')
                    made.add(text)
                    self.assertTrue(all(text.count(s) == 1 for s in slots), text)
                    self.assertFalse([t for t in wordings.HELD_OUT_TURNS if t in text.lower()], text)
        self.assertGreater(len(made), 12_000)

    def test_written_frames_have_their_slots_and_nothing_of_the_held_out_ones(self):
        from training import facts, wordings
        slots = {'sentence': {'R', 'K'}, 'record': {'K'}, 'context': {'C', 'R', 'K'}}
        files = [(texts, slots[style] | (set() if asking else {'V'})) for style, both in wordings.WRITTEN.items() for asking, texts in enumerate(both)]
        files += [(lines, {'chain': {'v'}, 'change': {'R', 'K', 'V'}}.get(kind, {'R', 'K'})) for kind, lines in wordings.LISTED.items()]
        held_out = {f.lower().strip('.?') for name in dir(facts) if name.startswith(('HELD_OUT', 'FRESH', 'BLIND')) for f in getattr(facts, name)}
        for texts, expected in files:
            self.assertGreater(len(texts), 35)
            for text in texts:
                self.assertEqual(set(re.findall(r'{(.*?)}', text)), expected, text)
                self.assertFalse([t for t in wordings.HELD_OUT_TURNS if t in text.lower()], text)
                self.assertNotIn(text.lower().strip('.?'), held_out)

    def test_frames_share_no_turn_of_three_words_with_the_blind_ones(self):
        from training import facts, wordings
        blind = {t for text in facts.BLIND_SENTENCES + facts.BLIND_QUESTIONS for t in turns(text)}
        for both in wordings.WRITTEN.values():
            for text in [*both[0], *both[1]]:
                self.assertFalse(turns(text) & blind, text)
        for text in sum(wordings.LISTED.values(), []):
            self.assertFalse(turns(text) & blind, text)
        self.assertFalse({f for name in dir(facts) if name.isupper() and isinstance(getattr(facts, name), list)
                          and not name.startswith('BLIND') for f in getattr(facts, name)} & set(facts.BLIND_SENTENCES + facts.BLIND_QUESTIONS))

    def test_theme_never_repeats_an_identity(self):
        from training import facts
        rng = random.Random(2)
        theme = facts.theme(rng, self.world.lex)
        made = [theme.fact(rng).identity for _ in range(60)]
        self.assertEqual(len(made), len(set(made)))

    def test_token_span_covers_the_text_it_names(self):
        tokenizer = self.world.tokenizer
        text = 'The code for caf\u00e9 7 is 40917, they say.'
        ids = tokenizer.encode(text)
        first, last = tokenizer.token_span(ids, text, text.index('40917'), 5)
        self.assertEqual(tokenizer.decode(ids[first:last]), '40917')


if __name__ == '__main__':
    unittest.main()
