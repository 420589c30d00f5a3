"""Passage recall through the engine: what is asked of the command line, and what is made of its answers."""
import tempfile
import unittest
from pathlib import Path

try:
    import numpy  # noqa: F401
    AVAILABLE = True
except ImportError:
    AVAILABLE = False

TEXTS = ['The amber key opens the chapel.', 'The teal key opens the mill.', 'Padding of no interest.']


class FakeEngine:
    """Finds document 1 before 0 by landmarks and by the look, and 0 before 1 with keywords; 2 has no page."""

    def __init__(self):
        self.asked, self.documents = [], []

    def run(self, command, *arguments):
        if command == 'ingest':
            self.documents = [path.read_text() for path in sorted(Path(arguments[1]).iterdir())]
        if command == 'documents':
            return {'documents': [{'chunks': 2} for _ in self.documents]}
        if command != 'search':
            return {}
        self.asked.append(arguments)
        passages = [{'document': '000001', 'rerank_score': 2.0, 'keyword_score': 0.5}, {'document': '000000', 'rerank_score': 1.0, 'keyword_score': 2.0},
                    {'document': '000002', 'keyword_score': 9.0}]
        if '--keywords' in arguments:
            passages = [passages[1], passages[0], passages[2]]
        return {'results': passages[:int(arguments[3])], 'timing': {'total_seconds': 0.004}}


@unittest.skipUnless(AVAILABLE, 'numpy is not installed')
class SearchEngineTest(unittest.TestCase):
    def measured(self, weights):
        from training import search_engine
        engine = FakeEngine()
        with tempfile.TemporaryDirectory() as folder:
            result = search_engine.measure(engine, 'set', TEXTS, [('the amber key', {0}), ('teal', {1})], 64, weights, folder)
        return engine, result

    def test_each_way_is_asked_for_and_judged_by_the_right_document(self):
        engine, result = self.measured([])
        self.assertEqual(engine.documents, TEXTS)
        self.assertEqual([a[4:] for a in engine.asked[::2]], [(), ('--rerank', '--candidates', '64'), ('--rerank', '--keywords', '--candidates', '64')])
        self.assertEqual({a[:4] for a in engine.asked}, {('set', 'the amber key', '-k', '8'), ('set', 'teal', '-k', '8')})
        for way in ('landmarks', 'second look', 'with keywords', 'BM25'):
            self.assertEqual(result[way]['recall'][8], 1)
        self.assertEqual(result['BM25']['recall'][1], 1)
        self.assertEqual(result['second look']['recall'][1], 0.5)
        self.assertEqual(result['with keywords']['server_p50_ms'], 4)
        self.assertEqual((result['chunks'], result['questions']), (6, 2))

    def test_weights_order_all_candidates_and_have_a_half_to_be_chosen_by(self):
        engine, result = self.measured([0, 1])
        self.assertEqual(engine.asked[-1][2:], ('-k', '64', '--rerank', '--keywords', '--candidates', '64'))
        self.assertEqual(result['among the candidates'], 1)
        self.assertEqual([w['chosen_on'][1] for w in result['weights']], [0, 1])      # of document 0
        self.assertEqual([w['told_by'][1] for w in result['weights']], [1, 0])        # of document 1

    def test_a_candidate_without_a_page_is_last(self):
        from training import search_engine
        self.assertEqual(search_engine.weigh(FakeEngine().run('search', 'm', 'q', '-k', '3')['results'], 9), [0, 1, 2])

    def test_the_table_has_a_line_a_set_and_one_a_weight_and_half(self):
        from training import search_engine
        _, result = self.measured([1])
        lines = search_engine.table([result]).split('\n')
        self.assertEqual(len({line.count('|') for line in lines[:3]}), 1)
        self.assertIn('| set | 2 | 6 | 50.0 / 100.0 | 50.0 / 100.0 | 50.0 / 100.0 | 100.0 / 100.0 |', lines)
        self.assertEqual(lines[4:], ['| weight, the half to choose by | set | mean |', '| --- | --- | --- |', '| 1 | 100.0 / 100.0 | 100.0 / 100.0 |', '',
                                     '| weight, the other half | set | mean |', '| --- | --- | --- |', '| 1 | 0.0 / 100.0 | 0.0 / 100.0 |'])


if __name__ == '__main__':
    unittest.main()
