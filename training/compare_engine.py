"""The engine beside PyTorch on the same inputs: same chunks, same answers?

Usage: python3 -m training.compare_engine BUNDLE PREPARED EVAL_FOLDER [--documents 32] [--precision f32 bf16] [--programs build/release/bin]
Held-out books with one held-out fact a document (a segment each) go through `mneme-server` and `mneme`; the facts are asked.
PyTorch reads the same tokens in float32 on the CPU. Prints one line for each precision of the engine."""
import argparse
import json
import random
import tempfile
from pathlib import Path

import torch

from training.engine import Engine
from training.evaluate import SEGMENT, Evaluation
from training.memory import LargeMemory
from training.needles import dense_needles

CHARACTERS = 12_000              # of book text a document; with the fact, fewer than a segment's tokens
ANSWER_TOKENS = 20


def documents(evaluation, count, rng):
    """[(text, question, answer)]: a window of a book with a fact in it."""
    made, result = dense_needles(evaluation.tokenizer, evaluation.lex, rng, count), []
    for needle in made:
        book = rng.choice([t for t in evaluation.book_texts if len(t) > 2 * CHARACTERS])
        at, cut = rng.randrange(len(book) - CHARACTERS), rng.randrange(CHARACTERS // 2)
        cut = 1 + book.find(' ', at + cut) - at
        text = f'{book[at:at + cut]}{evaluation.tokenizer.decode(needle.statements[0].ids)} {book[at + cut:at + CHARACTERS]}'
        result.append((text, evaluation.tokenizer.decode(needle.prompt), needle.values[0]))
    return result


def reference(evaluation, made):
    """(chunks read, best landmark first, answer) of each question, by PyTorch. A chunk is (document, chunk of it)."""
    chunk, memory, where = evaluation.chunk, LargeMemory(evaluation.model, evaluation.tokenizer, len(made) * SEGMENT // evaluation.chunk, 'cpu'), []
    for number, (text, _, _) in enumerate(made):
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
    prompts, found = [evaluation.tokenizer.encode(question) for _, question, _ in made], []
    for prompt in prompts:
        ids = [evaluation.tokenizer.question, *prompt, evaluation.tokenizer.answer]
        _, _, index, score = memory.choose(evaluation.padded([ids]))
        at = len(ids) - 1
        found.append([where[c] for c in index[0, at][score[0, at].argsort(descending=True)].tolist()])
    return list(zip(found, evaluation.generate(memory, prompts, ANSWER_TOKENS)))


def results(engine, made, folder):
    """As `reference`, by the engine."""
    engine.run('create', 'compare')
    for number, (text, _, _) in enumerate(made):
        path = Path(folder) / 'document.txt'
        path.write_bytes(text.encode())
        engine.run('ingest', 'compare', str(path), '--document', f'{number:04d}')
    answers = []
    for _, question, _ in made:
        found = engine.run('search', 'compare', question)['results']
        said = engine.run('ask', 'compare', question, '--max-tokens', str(ANSWER_TOKENS))['answer']
        answers.append(([(int(r['document']), r['chunk_index']) for r in found], said))
    return answers


def compare(expected, got, made):
    count = lambda test: sum(map(test, zip(expected, got, made)))
    return {'questions': len(made),
            'same best chunk': count(lambda x: x[0][0][0] == x[1][0][0]),
            'same chunks read': count(lambda x: set(x[0][0]) == set(x[1][0])),
            'same answer': count(lambda x: x[0][1].strip() == x[1][1].strip()),
            'right answers of PyTorch': count(lambda x: x[0][1].strip() == x[2][2].strip()),
            'right answers of the engine': count(lambda x: x[1][1].strip() == x[2][2].strip())}


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
    made = documents(evaluation, args.documents, random.Random(args.seed))
    expected = reference(evaluation, made)
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precision:
            with Engine(args.programs, args.bundle, folder, precision) as engine:
                print(precision, json.dumps(compare(expected, results(engine, made, folder), made)), flush=True)
