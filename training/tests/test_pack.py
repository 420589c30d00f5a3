"""A packed folder comes back whole, cut at a document where the bytes do not allow all of it; bars are read from results."""
import tempfile
import unittest
from pathlib import Path

from training.tests.fixtures import needs_torch, prepared


@needs_torch
class PackTest(unittest.TestCase):
    def test_unpacked_tokens_are_whole_documents_from_the_beginning(self):
        import numpy as np

        from training import pack
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / 'eval' / 'books').mkdir(parents=True)
            (Path(folder) / 'eval' / 'books' / 'a.txt').write_text('A book.')
            (Path(folder) / 'code.txt').write_text('int main() {}')
            kept, _ = pack.pack(prepared(), f'{folder}/eval', f'{folder}/packed', 100_000, [f'{folder}/code.txt'])
            pack.unpack(f'{folder}/packed', f'{folder}/prepared', f'{folder}/again')
            documents, before = np.load(f'{folder}/prepared/documents.npy'), np.load(prepared() / 'documents.npy')
            tokens = np.load(f'{folder}/prepared/tokens.npy')
            self.assertEqual((len(tokens), documents[-1]), (kept, kept))
            self.assertTrue((documents == before[:len(documents)]).all())
            self.assertTrue((tokens == np.load(prepared() / 'tokens.npy')[:kept]).all())
            self.assertEqual((Path(folder) / 'again' / 'other' / 'code.txt').read_text(), 'int main() {}')
            self.assertEqual((Path(folder) / 'prepared' / 'questions.jsonl').read_bytes(), (prepared() / 'questions.jsonl').read_bytes())


class BarsTest(unittest.TestCase):
    def test_a_bar_is_reached_only_by_a_measurement(self):
        from training import bars
        one = lambda family, size, exact: {'family': family, 'size': size, 'depth': 0.5, 'exact': exact, 'recall_at_1': exact, 'recall_at_8': exact}
        report = {'bundle': 'x', 'dense': [one('dense', '16M', True)], 'needles': [one('single', '64M', False)],
                  'sets': [{'set': 's', 'recall_at_8': 0.5, 'bm25_recall_at_8': 0.6}],
                  'perplexity': [{'memory_tokens': 0, 'perplexity': 60.0}, {'memory_tokens': 4096, 'perplexity': 50.0},
                                 {'memory_tokens': 1 << 20, 'perplexity': 50.5}]}
        reached = {what: ok for what, _, _, ok in bars.bars(report)}
        self.assertTrue(reached['dense 16M recall@1'] and reached['dense 16M exact'])
        self.assertFalse(reached['dense 64M exact'] or reached['single 64M exact'] or reached['s recall@8 against BM25'])
        self.assertTrue(reached['perplexity with 1M at most that without memory'])
        self.assertFalse(reached['perplexity with 1M at most that with 4K'])


if __name__ == '__main__':
    unittest.main()
