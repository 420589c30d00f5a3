"""Questions through the engine: what counts as exact, and which document is right."""
import unittest

from training.tests.fixtures import needs_torch


class FakeEngine:
    def run(self, *arguments):
        self.arguments = arguments
        return {'answer': ' 17\n 4\n', 'results': [{'document': '000003', 'weight': 0.2}, {'document': '000005', 'weight': 0.7}]}


class FakeTokenizer:
    def decode(self, ids):
        return f'question {ids}'


class FakeEvaluation:
    tokenizer = FakeTokenizer()


@needs_torch
class AskEngineTest(unittest.TestCase):
    def needle(self, values, separator):
        from training.needles import Needle
        return Needle('family', [], [1], values, [], separator=separator)

    def test_list_is_exact_in_any_order_with_nothing_else(self):
        from training.ask_engine import is_exact
        from training.tasks import LISTED
        needle = self.needle(['17', '4'], LISTED)
        self.assertTrue(is_exact(needle, ' 4\n 17\n'))
        for said in (' 17\n', ' 17\n 4\n 5\n', ' 17\n 4\n 4\n', ' 17, 4'):
            self.assertFalse(is_exact(needle, said), said)

    def test_single_answer_is_exact_as_a_whole(self):
        from training.ask_engine import is_exact
        needle = self.needle(['17'], ', ')
        self.assertTrue(is_exact(needle, ' 17'))
        self.assertFalse(is_exact(needle, ' 17\n 17\n'))
        self.assertFalse(is_exact(needle, ' 171'))

    def test_right_document_may_be_read_without_being_heaviest(self):
        from training import ask_engine
        from training.tasks import LISTED
        needle, engine = self.needle(['4', '17'], LISTED), FakeEngine()
        for right, read, heaviest in (({3}, True, False), ({5}, True, True), ({3, 5}, True, True), ({4}, False, False)):
            got = ask_engine.ask(engine, FakeEvaluation(), needle, right)
            self.assertEqual((got['exact'], got['read'], got['heaviest']), (True, read, heaviest), right)
        self.assertEqual(engine.arguments[:3], ('ask', 'asked', 'question [1]'))

    def test_questions_are_spread_over_all_documents(self):
        from training.ask_engine import spaced
        self.assertEqual(spaced(list(range(10)), 5), [1, 3, 5, 7, 9])
        self.assertEqual(spaced([1, 2], 5), [1, 2])


if __name__ == '__main__':
    unittest.main()
