"""The fast network is the executable specification; a bundle keeps it; losses and training steps work."""
import argparse
import random
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

from training.tests.fixtures import SIZES, needs_torch, prepared


def tokenizer():
    from training.tokenizer import Tokenizer
    return Tokenizer(prepared() / 'tokenizer.model')


def vocabulary():
    return tokenizer().vocab_size


def lists():
    """A reader of random tokens [1,128] with two answers that are lists."""
    import torch
    t, ids = tokenizer(), torch.randint(6, vocabulary(), (1, 128))
    ids[0, [0, 70]], ids[0, [10, 75]], ids[0, 69] = t.question, t.answer, t.document
    ids[0, [5, 20, 28, 40, 41, 60, 80, 90, 100]] = t.line_end
    return ids


HALO_AND_LOOK = dict(encoder_halo=7, look_heads=3)


def tiny_model(**more):
    import torch

    from training.config import Config
    from training.model import Ramba
    torch.manual_seed(0)
    model = Ramba(Config(vocab_size=vocabulary(), chunks_per_read=3, **SIZES, **more))
    for p in model.parameters():                 # away from the special values of a fresh network
        p.data += 0.05 * torch.randn_like(p)
    return model.eval()


@needs_torch
class ModelTest(unittest.TestCase):
    def test_fast_network_equals_the_specification(self):
        import torch

        from training import reference
        for more in ({}, HALO_AND_LOOK, HALO_AND_LOOK | dict(newest_margin=2)):
            self.compare(tiny_model(**more))

    def test_lists_tell_each_chunk_once(self):
        for more in ({}, HALO_AND_LOOK, HALO_AND_LOOK | dict(newest_margin=2)):
            model = tiny_model(**more, told_penalty=3)
            told = self.compare(model)
            model.c = replace(model.c, told_penalty=0)
            self.assertGreater((told - self.compare(model)).abs().max().item(), 0.01)

    def test_values_of_answers(self):
        import torch

        from training.told import values_of
        from training.tokenizer import Tokenizer
        t = Tokenizer(prepared() / 'tokenizer.model')
        n, word = t.line_end, 300
        row = [t.question, word, n, t.answer, word, n, word, word, n, t.document, n, t.question, n, t.answer, n, t.document, word]
        values = values_of(torch.tensor([row, [word] * len(row)]), t)
        self.assertEqual(values.number.tolist(), [[0, 0, 0, 1, 1, 2, 2, 2, 3, 0, 0, 0, 0, 1, 2, 0, 0], [0] * len(row)])
        self.assertEqual(values.value.tolist(), [[0, 0, 0, 1, 1, 2, 2, 2, 3, 0, 0, 0, 0, 4, 5, 0, 0], [0] * len(row)])
        self.assertEqual((values.values_max, values.number_max), (5, 3))

    def compare(self, fast):
        import torch

        from training import reference
        from training.told import values_of
        c = reference.Config(**{f: getattr(fast.c, f) for f in reference.Config.__dataclass_fields__})
        slow = reference.Ramba(c)
        slow.load_state_dict(fast.state_dict())
        memory, reader, tokens = torch.randint(6, vocabulary(), (1, 384)), lists(), tokenizer()
        with torch.no_grad():
            passes = fast(memory, torch.zeros_like(memory), reader, torch.zeros_like(reader), values_of(reader, tokens))
            K, V, expected = slow.ingest(memory[0], 5)
            logits, _ = slow.read(reader[0], K, V, expected, tokens)
        self.assertLess((passes.landmarks[0] - expected).abs().max().item(), 1e-3)
        self.assertLess((fast.logits(passes.hidden)[0] - logits).abs().max().item(), 1e-3)
        return logits

    def test_rounded_weights_are_those_of_the_bundle(self):
        import torch

        from training import reference
        from training.rounding import Rounded
        model = tiny_model(**HALO_AND_LOOK)
        before = {name: p.clone() for name, p in model.state_dict().items()}
        stored = reference.dequantize(reference.quantize(before))
        with Rounded(model):
            for name, p in model.state_dict().items():
                self.assertLess((p - stored[name]).abs().max().item(), 1e-6, name)
        for name, p in model.state_dict().items():
            self.assertTrue(torch.equal(p, before[name]), name)

    def test_state_restarts_where_the_segment_changes(self):
        import torch
        model = tiny_model()
        ids = torch.randint(6, vocabulary(), (1, 256))
        segment = (torch.arange(256) >= 100).long()[None]
        with torch.no_grad():
            whole = model.run_lower(ids, segment)[:, 100:228]
            alone = model.run_lower(ids[:, 100:228], torch.zeros(1, 128, dtype=torch.long))
        self.assertLess((whole - alone).abs().max().item(), 1e-4)

    def test_large_memory_reads_as_the_dense_form(self):
        import torch

        from training.memory import LargeMemory
        from training.told import values_of
        model = tiny_model(**HALO_AND_LOOK, told_penalty=3)
        ids, reader = torch.randint(6, vocabulary(), (1, 512)), lists()
        memory = LargeMemory(model, tokenizer(), 8, 'cpu')
        memory.ingest(ids)
        logits, _, _ = memory.read(reader)
        with torch.no_grad():
            passes = model(ids, torch.zeros_like(ids), reader, torch.zeros_like(reader), values_of(reader, tokenizer()))
        self.assertLess((logits - model.logits(passes.hidden)).abs().max().item(), 1e-3)

    def test_the_halo_ends_with_the_segment(self):
        import torch
        model = tiny_model(**HALO_AND_LOOK)
        h, segment = torch.randn(1, 256, model.c.d_model), torch.tensor([[0] * 128 + [1] * 128])
        with torch.no_grad():
            both = model.chunk_encoder(h, segment)
            parts = [model.chunk_encoder(h[:, :128], segment[:, :128]), model.chunk_encoder(h[:, 128:], segment[:, 128:])]
            joined = model.chunk_encoder(h, 0 * segment)[2]
        for whole, a, b in zip(both, *parts):
            self.assertLess((whole - torch.cat([a, b], 1)).abs().max().item(), 1e-5)
        self.assertGreater((both[2][:, 1] - joined[:, 1]).abs().max().item(), 1e-3)

    def test_strangers_are_the_best_chunks_of_other_rows(self):
        import torch
        model = tiny_model(**HALO_AND_LOOK)
        ids, reader = torch.randint(6, vocabulary(), (3, 256)), torch.randint(6, vocabulary(), (3, 128))
        asked, alone = torch.tensor([5, 130, 300]), torch.zeros(3, 128, dtype=torch.bool)
        alone[1, 2] = True
        with torch.no_grad():
            passes = model(ids, 0 * ids, reader, 0 * reader, None, asked, alone, strangers=4)
            scores = model.score(passes.queries.reshape(384, -1)[asked], passes.landmarks.reshape(12, -1))
            chosen = model.choose_strangers(passes.queries, passes.landmarks, asked, 4)
            alone_in_its_batch = model(ids[:1], 0 * ids[:1], reader[:1], 0 * reader[:1], None, asked[:1], alone[:1], strangers=4)
        self.assertEqual(alone_in_its_batch.corrected.shape, (1, 128, 4))
        self.assertEqual(passes.corrected.shape, (3, 128, 8))
        self.assertEqual(passes.first_own, 2)
        for row in range(3):
            others = scores[row].clone()
            others[row * 4:row * 4 + 4] = float('-inf')
            self.assertEqual(set(chosen[row].tolist()), set(others.topk(4).indices.tolist()))
        self.assertLess(passes.corrected[1, 2, [0, 1, 6, 7]].max().item(), -1000)
        self.assertGreater(passes.corrected[1, 2, 2:6].min().item(), -1000)

    def test_bundle_round_trip_and_golden(self):
        from training import bundle
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model(**HALO_AND_LOOK)
            bundle.export(model.state_dict(), model.c, prepared() / 'tokenizer.model', folder)
            again, _ = bundle.load(folder)
            self.assertEqual(again.c, model.c)
            for (name, a), b in zip(model.state_dict().items(), again.state_dict().values()):
                bound = 0.51 * a.abs().amax(-1).max().item() / 127 + 1e-6 if a.ndim == 2 else 1e-6
                self.assertLessEqual((a - b).abs().max().item(), bound, name)
            bundle.write_golden(folder, Path(folder) / 'golden.safetensors')

    def test_added_heads_of_the_second_look_begin_negative_and_others_stay(self):
        from training import train
        few, more = tiny_model(**HALO_AND_LOOK), tiny_model(**dict(HALO_AND_LOOK, look_heads=HALO_AND_LOOK['look_heads'] + 2))
        more.load_state_dict(train.with_more_heads(few.state_dict(), more))
        count, rows = few.c.look_heads, len(few.look.q_proj.weight)
        self.assertTrue((more.look.head_weight[:count] == few.look.head_weight).all())
        self.assertTrue((more.look.head_weight[count:] == train.NEW_HEAD_WEIGHT).all())
        self.assertTrue((more.look.q_proj.weight[:rows] == few.look.q_proj.weight).all())
        few.load_state_dict(train.with_more_heads(few.state_dict(), few))

    def test_gold_above_zero_and_others_below_cost_little(self):
        import torch

        from training.losses import retrieval_terms
        gold = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
        good, hit = retrieval_terms(torch.tensor([[-20.0, 20.0, 15.0, -20.0]]), gold, torch.tensor([0]), torch.tensor([False]))
        bad, miss = retrieval_terms(torch.tensor([[-20.0, 1.0, 15.0, 5.0]]), gold, torch.tensor([0]), torch.tensor([False]))
        local, found = retrieval_terms(torch.tensor([[-20.0, 1.0, 15.0, 5.0]]), gold, torch.tensor([0]), torch.tensor([True]))
        self.assertLess(good.item(), 0.01)
        self.assertGreater(bad.item(), 4)
        self.assertLess(local.item(), 0.5)
        self.assertEqual([hit.item(), miss.item(), found.item()], [True, False, True])

    def test_training_goes_on_from_its_checkpoint(self):
        from training import checkpoint, train
        from training.config import Config
        with tempfile.TemporaryDirectory() as folder:
            args = argparse.Namespace(prepared=str(prepared()), checkpoint=folder, seconds=0.1, initial=None, spent=0.0, rows=2, strangers=2, row_tokens=1024, reader_tokens=256,
                                      workers=0, seed=0, log_every=1000, save_every=1000,
                                      matrix_rate=0.01, other_rate=1e-3, warmup_steps=10, rounded_share=0.5, profile=None)
            config = Config(vocab_size=vocabulary(), **SIZES, **HALO_AND_LOOK)
            train.train(args, config)
            first = checkpoint.read_config(folder), checkpoint.load_weights(folder)
            args.seconds = 1e-9                              # all of the time has passed: nothing may change
            train.train(args, config)
            self.assertEqual(first[0], checkpoint.read_config(folder))
            self.assertTrue(all((a == b).all() for a, b in zip(first[1].values(), checkpoint.load_weights(folder).values())))


    def test_profile_names_the_operations_of_its_steps_alone(self):
        import torch
        from training.step_profile import StepProfile
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'profile.txt'
            profile, a = StepProfile(path, first=2, steps=3), torch.ones(8, 8)
            for step in range(7):
                profile.step(step)
                a @ a
                if step == 0 or step == 6:
                    a.cumsum(0)
            self.assertIn('3 steps from step 2', path.read_text())
            self.assertIn('aten::mm', path.read_text())
            self.assertNotIn('aten::cumsum', path.read_text())
            profile = StepProfile(Path(folder), first=0, steps=1)    # a folder cannot be written: the run goes on
            profile.step(0)
            profile.step(1)
            profile.step(2)


@needs_torch
class EvaluationTest(unittest.TestCase):
    def test_every_part_of_the_evaluation_runs(self):
        import json

        from training import bundle, evaluate, ranks, report
        from training.tests.fixtures import prose
        rng = random.Random(0)
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model(**HALO_AND_LOOK)
            bundle.export(model.state_dict(), model.c, prepared() / 'tokenizer.model', f'{folder}/bundle')
            (Path(folder) / 'books').mkdir()
            for i in range(3):
                (Path(folder) / 'books' / f'{i}.txt').write_text(prose(rng, 300))
            passages = [prose(rng, 2) for _ in range(20)]
            (Path(folder) / 'set.jsonl').write_text('\n'.join(json.dumps(
                {'context': p, 'qas': [{'q': p.split('.')[0], 'a': p.split()[0]}]}) for p in passages))
            evaluation = evaluate.Evaluation(f'{folder}/bundle', prepared(), folder, 1000, 'cpu')
            results = evaluation.needles([8192, 16384], 1)
            results += evaluation.dense([8192, 16384], 2)
            results += evaluation.dense([8192], 2, family='dense, blind wordings')
            self.assertEqual({r['size'] for r in results}, {'8K', '16K'})
            places = ranks.ranks(evaluation, 8192, 2)
            self.assertTrue(all(0 <= r['place'] < 128 and (r['first'] == 'right') == (r['place'] == 0) for r in places))
            self.assertIn('all', ranks.table(places, {'all': places}))
            one = evaluation.question_set('set', 8192, 2)
            self.assertGreater(one['bm25_recall_at_1'], 0.9)
            self.assertEqual(one['questions'], 20)
            points = evaluation.perplexity([0, 4096, 8192], readers=2, reader_tokens=256)
            self.assertEqual(len(points), 3)
            print(report.table([{'bundle': 'tiny', 'dense': results, 'needles': [], 'sets': [one], 'perplexity': points}]))


if __name__ == '__main__':
    unittest.main()
