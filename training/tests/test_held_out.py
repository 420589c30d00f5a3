"""What evaluation keeps from training, and what counts as right in it."""
import json
import tempfile
import unittest
from pathlib import Path

from training.tests.fixtures import needs_torch, prepared

PASSAGE = 'The keeper of the northern light wrote down every ship that passed below the cliff in the winter of that year.'


@needs_torch
class HeldOutTest(unittest.TestCase):
    def files(self, folder):
        exclude = Path(folder) / 'set.jsonl'
        exclude.write_text(json.dumps({'context': PASSAGE, 'qas': []}) + '\n')
        return [str(exclude)]

    def test_lines_of_excluded_passages_are_left_out_and_others_stay(self):
        from training.corpus import HeldOut
        with tempfile.TemporaryDirectory() as folder:
            held_out = HeldOut(self.files(folder))
        other = 'The keeper of the southern light wrote nothing down, for no ship came by in all the years that he lived there alone.'
        self.assertEqual(held_out.without(f'{other}\n{PASSAGE.upper()} Nobody read it.\nEnd.'), f'{other}\nEnd.')

    def test_question_files_without_a_last_line_end_stay_apart_and_excluded_records_go(self):
        from training import corpus
        record = lambda text: json.dumps({'source': 's', 'context': text, 'qas': []})
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (('a', record('One.')), ('b', record(PASSAGE) + '\n\n' + record('Two.'))):
                (Path(folder) / f'{name}.jsonl').write_text(text)
            (Path(folder) / 'corpus.txt').write_text('A text of a few words.\0Another.')
            corpus.prepare(f'{folder}/corpus.txt', prepared(), f'{folder}/out', [f'{folder}/a.jsonl', f'{folder}/b.jsonl'], processes=1,
                           exclude=self.files(folder))
            kept = [json.loads(line)['context'] for line in open(f'{folder}/out/questions.jsonl', encoding='utf-8')]
        self.assertEqual(kept, ['One.', 'Two.'])

    def test_records_without_a_passage_exclude_nothing_and_are_kept(self):
        from training import corpus
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps(record) + '\n' for record in ({'facts': ['Mary is in the school.'], 'qas': []}, {'context': None, 'qas': []})]
            (Path(folder) / 'set.jsonl').write_text(''.join(lines))
            (Path(folder) / 'corpus.txt').write_text('A text of a few words.')
            corpus.prepare(f'{folder}/corpus.txt', prepared(), f'{folder}/out', [f'{folder}/set.jsonl'], processes=1, exclude=[f'{folder}/set.jsonl'])
            self.assertEqual(open(f'{folder}/out/questions.jsonl', encoding='utf-8').readlines(), lines)

    def test_text_of_another_alphabet_has_words(self):
        from training.corpus import Lexicon, count_words
        counts, names = count_words(['Смотритель северного маяка записывал каждый корабль, проходивший под скалой зимой того года'] * 3)
        lexicon = Lexicon(counts, names)
        self.assertTrue(lexicon.words and lexicon.nouns)

    def test_no_question_of_one_memory_has_two_answers(self):
        import random

        from training import needles
        from training.corpus import Lexicon
        from training.tokenizer import Tokenizer
        tokenizer = Tokenizer(prepared() / 'tokenizer.model')
        for seed in range(3):
            maker = needles.Maker(tokenizer, Lexicon.load(prepared() / 'lexicon.json', held_out=True), random.Random(seed))
            stated = {}
            record = maker.state
            maker.state = lambda theme, fact, frames=None: (stated.setdefault(fact.identity, set()).add(fact.value), record(theme, fact, frames))[1]
            for make in (maker.multi_query, maker.multi_key, maker.joint, maker.single, maker.records):
                for _ in range(40):
                    make()
            self.assertEqual([identity for identity, values in stated.items() if len(values) > 1], [])

    def test_any_passage_with_the_question_answers_it(self):
        from training.asked_twice import asked_as, owners_of
        owners = owners_of([('What is glaucoma?', 0), ('what is  Glaucoma?', 3), ('What is flu?', 1)])
        self.assertEqual((owners[asked_as('What is glaucoma?')], owners[asked_as('What is flu?')]), ({0, 3}, {1}))


@needs_torch
class CheckpointTest(unittest.TestCase):
    def test_one_that_was_cut_off_leaves_the_one_before(self):
        from training import checkpoint
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / 'checkpoint'
            self.assertFalse(checkpoint.find(place))
            before = Path(f'{place}.before')                   # cut off between the two renamings
            before.mkdir()
            (before / 'progress.json').write_text('{}')
            self.assertTrue(checkpoint.find(place))
            self.assertTrue((place / 'progress.json').exists() and not before.exists())


if __name__ == '__main__':
    unittest.main()
