"""Where dense facts are lost: the place of the right chunk among all chunks of a memory by its landmark score alone, for facts that
a chunk boundary cuts and others, for each wording, and what stands in the chunk that came first instead.

Usage: python3 -m training.ranks BUNDLE PREPARED EVAL_FOLDER [--size 16M] [--questions 1024] [--wordings FAMILY] [--hay-tokens 3000000]
Prints tables; 16M tokens take half a minute on one H200."""
import argparse
import collections
import random

import numpy as np
import torch

from training import facts, needles
from training.evaluate import BATCH_ROWS, SEGMENT, Evaluation, parse_size
from training.rows import Memory

PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 1024)


def landmark_scores(evaluation, memory, prompts):
    """prompts: at most BATCH_ROWS lists of ids -> scores [n, chunks] at their <a>."""
    tokenizer = evaluation.tokenizer
    rows = [[tokenizer.question, *p, tokenizer.answer] for p in prompts]
    with torch.no_grad(), memory.autocast():
        h = memory.choose(evaluation.padded(rows))[0]
        queries = evaluation.model.queries(h)
    asked = torch.stack([queries[i, len(row) - 1] for i, row in enumerate(rows)]).float()
    return evaluation.model.score(asked, memory.landmarks[:memory.count].float())


def wording(text, frames):
    """The frame whose longest fixed piece is in the text."""
    pieces = lambda frame: max(frame.replace('{R}', '\0').replace('{K}', '\0').replace('{V}', '\0').split('\0'), key=len).strip()
    return next((f for f in frames if pieces(f) in text), 'other')


def ranks(evaluation, size, count, family='dense', seed=2):
    """[{place, cut, statement, question, first}] of `count` questions about dense facts; first: what the best chunk holds."""
    rng, segments = random.Random(seed), size // SEGMENT
    memory = evaluation.memory(size)
    made = needles.dense_needles(evaluation.tokenizer, evaluation.lex, rng, segments, family)
    evaluation.ingest_hay(memory, segments, rng, {i: n.statements for i, n in enumerate(made)})
    chunks, held = Memory(evaluation.tokenizer, 0, evaluation.chunk), {}
    whole = lambda s: chunks.chunks(s.position, s.position + len(s.ids))
    for i, needle in enumerate(made):
        held.update(dict.fromkeys(whole(needle.statements[0]), i))
    asked, result = [int((i + 0.5) * segments / count) for i in range(count)], []
    for at in range(0, count, BATCH_ROWS):
        batch = asked[at:at + BATCH_ROWS]
        for i, scores in zip(batch, landmark_scores(evaluation, memory, [made[i].prompt for i in batch])):
            statement, best = made[i].statements[0], int(scores.argmax())
            gold = statement.gold(chunks)
            right = scores[sorted(gold)].max()
            first = ('right' if best in gold else 'no fact' if best not in held else
                     'the rest of the fact' if held[best] == i else 'another fact')
            result.append({'place': int((scores > right).sum()), 'cut': len(whole(statement)) > 1, 'first': first,
                           'statement': evaluation.tokenizer.decode(statement.ids), 'question': evaluation.tokenizer.decode(made[i].prompt)})
    return result


def table(results, groups):
    """Share of the right chunks among the first so many, for each group {name: [results]}."""
    lines = [f'{"":52} {"facts":>6} ' + ' '.join(f'{p:>6}' for p in PLACES)]
    for name, some in groups.items():
        places = np.array([r['place'] for r in some])
        lines.append(f'{name[:52]:52} {len(some):>6} ' + ' '.join(f'{100 * (places < p).mean():6.1f}' for p in PLACES))
    return '\n'.join(lines)


def grouped(results, name):
    groups = collections.defaultdict(list)
    for r in results:
        groups[name(r)].append(r)
    return dict(sorted(groups.items()))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('--size', default='16M')
    parser.add_argument('--questions', type=int, default=1024)
    parser.add_argument('--wordings', choices=list(facts.DENSE), default='dense', help='which set of held-out wordings')
    parser.add_argument('--hay-tokens', type=int, default=3_000_000)
    args = parser.parse_args()
    torch.set_float32_matmul_precision('high')
    evaluation = Evaluation(args.bundle, args.prepared, args.eval_folder, args.hay_tokens, 'cuda' if torch.cuda.is_available() else 'cpu')
    found = ranks(evaluation, parse_size(args.size), args.questions, args.wordings)
    statements, questions = facts.DENSE[args.wordings]
    print('Right chunks among the first so many by landmark score, per cent:')
    print(table(found, {'all': found, **grouped(found, lambda r: 'cut by a chunk boundary' if r['cut'] else 'in one chunk')}))
    print(table(found, grouped(found, lambda r: wording(r['statement'], statements))))
    print(table(found, grouped(found, lambda r: wording(r['question'], questions))))
    print('In the chunk that came first:', dict(collections.Counter(r['first'] for r in found)))
