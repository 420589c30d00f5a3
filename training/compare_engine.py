"""The engine beside PyTorch on the same inputs: same chunks, same answers?

Usage: python3 -m training.compare_engine BUNDLE PREPARED EVAL_FOLDER [--documents 32] [--precision f32 bf16] [--programs build/release/bin]
Held-out books with one held-out fact a document (a segment each) go through `mneme-server` and `mneme`; the facts are asked, and a quarter
as many lists, whose values stand in three documents. PyTorch reads the same tokens in float32 on the CPU. Prints one line for each precision of the engine."""
import argparse
import json
import random
import tempfile
from pathlib import Path

import torch

from training.ask_engine import is_exact, write
from training.engine import Engine
from training.evaluate import SEGMENT, Evaluation
from training.memory import LargeMemory
from training.needles import Maker, dense_needles
from training.tasks import LISTED

CHARACTERS = 12_000              # of book text a document; with the fact, fewer than a segment's tokens
ANSWER_TOKENS = 48               # of an answer that is a list


def documents(evaluation, count, rng):
    """(texts, [Needle]): windows of books, a fact in each, the statements of lists in some."""
    asked, maker = dense_needles(evaluation.tokenizer, evaluation.lex, rng, count), Maker(evaluation.tokenizer, evaluation.lex, rng)
    statements = [list(needle.statements) for needle in asked]
    for number in range(count // 4):
        asked.append(maker.multi_value() if number % 2 else maker.multi_query())
        for document, statement in zip(rng.sample(range(count), len(asked[-1].statements)), asked[-1].statements):
            statements[document].append(statement)
    return write(evaluation, statements, CHARACTERS, rng), asked


def reference(evaluation, texts, asked):
    """(chunks read, best landmark first, answer) of each question, by PyTorch. A chunk is (document, chunk of it)."""
    chunk, memory, where = evaluation.chunk, LargeMemory(evaluation.model, evaluation.tokenizer, len(texts) * SEGMENT // evaluation.chunk, 'cpu'), []
    for number, text in enumerate(texts):
        ids = [evaluation.tokenizer.document, *evaluation.tokenizer.encode(text)]
        if len(ids) > SEGMENT:
            raise ValueError(f'document {number} has {len(ids)} tokens, more than a segment')
        chunks = -(-len(ids) // chunk)
        ids += [evaluation.tokenizer.document] * (-len(ids) % evaluation.model.c.ssm_block)
        segment = [0 if at < chunks * chunk else 1 for at in range(len(ids))]    # the padding is nothing that a chunk sees
        memory.ingest(torch.tensor([ids]), torch.tensor([segment]))
        memory.count = len(where) + chunks                     # without a chunk of padding alone
        where += [(number, c) for c in range(chunks)]
    memory.K, memory.V, memory.landmarks = (t[:memory.count] for t in (memory.K, memory.V, memory.landmarks))
    prompts, found = [evaluation.tokenizer.encode(evaluation.tokenizer.decode(needle.prompt)) for needle in asked], []
    for prompt in prompts:
        ids = [evaluation.tokenizer.question, *prompt, evaluation.tokenizer.answer]
        _, _, index, score = memory.choose(evaluation.padded([ids]))
        at = len(ids) - 1
        found.append([where[c] for c in index[0, at][score[0, at].argsort(descending=True)].tolist()])
    return list(zip(found, evaluation.generate(memory, prompts, ANSWER_TOKENS)))


def results(engine, evaluation, texts, asked, folder):
    """As `reference`, by the engine."""
    engine.run('create', 'compare')
    for number, text in enumerate(texts):
        path = Path(folder) / 'document.txt'
        path.write_bytes(text.encode())
        engine.run('ingest', 'compare', str(path), '--document', f'{number:04d}')
    answers = []
    for needle in asked:
        question = evaluation.tokenizer.decode(needle.prompt)
        found = engine.run('search', 'compare', question)['results']
        said = engine.run('ask', 'compare', question, '--max-tokens', str(ANSWER_TOKENS))['answer']
        answers.append(([(int(r['document']), r['chunk_index']) for r in found], said))
    return answers


def compare(expected, got, asked):
    count = lambda test: sum(map(test, zip(expected, got, asked)))
    lists = lambda x: x[2].separator == LISTED
    return {'questions': len(asked), 'of them lists': count(lists),
            'same best chunk': count(lambda x: x[0][0][0] == x[1][0][0]),
            'same chunks read': count(lambda x: set(x[0][0]) == set(x[1][0])),
            'same answer': count(lambda x: x[0][1].strip() == x[1][1].strip()),
            'same list': count(lambda x: lists(x) and x[0][1].strip() == x[1][1].strip()),
            'right answers of PyTorch': count(lambda x: is_exact(x[2], x[0][1])),
            'right answers of the engine': count(lambda x: is_exact(x[2], x[1][1]))}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('--documents', type=int, default=32)
    parser.add_argument('--precision', nargs='+', default=['f32', 'bf16'])
    parser.add_argument('--programs', default='build/release/bin')
    parser.add_argument('--seed', type=int, default=7)
    args = parser.parse_args()
    evaluation = Evaluation(args.bundle, args.prepared, args.eval_folder, 0, 'cpu')
    texts, asked = documents(evaluation, args.documents, random.Random(args.seed))
    expected = reference(evaluation, texts, asked)
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precision:
            with Engine(args.programs, args.bundle, folder, precision) as engine:
                print(precision, json.dumps(compare(expected, results(engine, evaluation, texts, asked, folder), asked)), flush=True)
