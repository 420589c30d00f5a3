"""Passages through the engine: does a question find its own? By landmarks, by the second look, with keywords, and BM25 beside them.

Usage: python3 -m training.search_engine BUNDLE SET.jsonl ... [--padding TEXT ...] [--questions 400] [--candidates 256]
       [--weights 0.5 1 2] [--out OUT.json] [--programs build/release/bin]
Each SET is a question set as in `training.evaluate` (one {"context", "qas": [{"q"}]} a line; .zst, .xz too). Its contexts, each a
document, and the paddings go into a memory of `mneme-server` through `mneme`; some of its questions are asked. A question is
answered if one of the first k passages, k 1 and 8, is of the right document, or of another one that has this question. BM25 reads the same texts in chunks of 48 words.
--weights asks for all candidates of a search with keywords, and orders them by rerank_score + weight x keyword_score. A weight is
chosen on one half of the questions (every second one), and told by the other."""
import argparse
import concurrent.futures
import json
import random
import statistics
import tempfile
from pathlib import Path

from training.asked_twice import asked_as, owners_of
from training.bm25 import Bm25, word_chunks
from training.corpus import open_text
from training.engine import Engine, ingest

PASSAGES = 8                     # asked for
SEARCHES = {'landmarks': (), 'second look': ('--rerank',), 'with keywords': ('--rerank', '--keywords')}


def recall(found, right):
    """Of lists of documents, best first, and the right ones of each: {1: share, 8: share}."""
    return {k: sum(bool(wanted.intersection(documents[:k])) for documents, wanted in zip(found, right)) / len(right) for k in (1, PASSAGES)}


def search(engine, memory, question, k, candidates, flags):
    flags = (*flags, '--candidates', str(candidates)) if flags else flags
    answer = engine.run('search', memory, question, '-k', str(k), *flags)
    return answer['results'], 1e3 * answer['timing']['total_seconds']


def weigh(candidates, weight):
    """Their documents by the sum of both scores; as in the engine, those without a rerank score come last."""
    score = lambda p: p['rerank_score'] + weight * p['keyword_score'] if 'rerank_score' in p else float('-inf')
    return [int(p['document']) for p in sorted(candidates, key=score, reverse=True)]


def measure(engine, name, texts, asked, candidates, weights, folder):
    """`asked`: [(question, numbers of the texts that answer it)]."""
    ingest(engine, name, texts, folder)
    questions, right = zip(*asked)
    chunks = sum(document['chunks'] for document in engine.run('documents', name)['documents'])
    result = {'set': name, 'documents': len(texts), 'chunks': chunks, 'questions': len(asked), 'candidates': candidates}
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for way, flags in SEARCHES.items():
            found = list(threads.map(lambda q: search(engine, name, q, PASSAGES, candidates, flags), questions))
            result[way] = dict(recall=recall([[int(p['document']) for p in passages] for passages, _ in found], right),
                               server_p50_ms=statistics.median(ms for _, ms in found))
        if weights:
            lists = list(threads.map(lambda q: search(engine, name, q, candidates, candidates, SEARCHES['with keywords'])[0], questions))
            result['among the candidates'] = sum(bool(r.intersection(weigh(c, 0))) for c, r in zip(lists, right)) / len(right)
            result['weights'] = []
            for weight in weights:
                found = [weigh(c, weight) for c in lists]
                result['weights'].append({'weight': weight, 'chosen_on': recall(found[::2], right[::2]),
                                          'told_by': recall(found[1::2], right[1::2])})
    pieces, owner = zip(*((piece, number) for number, text in enumerate(texts) for piece in word_chunks(text)))
    bm25 = Bm25(pieces)
    result['BM25'] = {'recall': recall([[owner[c] for c in bm25.top(q, PASSAGES)] for q in questions], right)}
    return result


def mean(recalls):
    return {k: statistics.mean(r[k] for r in recalls) for k in (1, PASSAGES)}


def table(results):
    """Markdown: recall@1 / recall@8 in per cent, of each way; of each weight on both halves."""
    ways = [*SEARCHES, 'BM25']
    cells = lambda recalls: ' | '.join(f'{100 * r[1]:.1f} / {100 * r[PASSAGES]:.1f}' for r in recalls)
    lines = [f'| recall@1 / @8 of | questions | chunks | {" | ".join(ways)} |', '| --- ' * (3 + len(ways)) + '|']
    lines += [f'| {r["set"]} | {r["questions"]} | {r["chunks"]} | {cells(r[way]["recall"] for way in ways)} |' for r in results]
    for half, title in (('chosen_on', 'the half to choose by'), ('told_by', 'the other half')):
        for number, weighed in enumerate(zip(*(r.get('weights', ()) for r in results))):
            if number == 0:
                lines += ['', f'| weight, {title} | {" | ".join(r["set"] for r in results)} | mean |', '| --- ' * (2 + len(results)) + '|']
            recalls = [w[half] for w in weighed]
            lines.append(f'| {weighed[0]["weight"]:g} | {cells([*recalls, mean(recalls)])} |')
    return '\n'.join(lines)


def read_set(path):
    with open_text(path) as f:
        return [json.loads(line) for line in f]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('sets', nargs='+')
    parser.add_argument('--padding', nargs='*', default=[])
    parser.add_argument('--questions', type=int, default=400)
    parser.add_argument('--candidates', type=int, default=256)
    parser.add_argument('--weights', type=float, nargs='*', default=[])
    parser.add_argument('--precision', default='bf16')
    parser.add_argument('--programs', default='build/release/bin')
    parser.add_argument('--port', type=int, default=7440)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--out')
    args = parser.parse_args()
    padding = [Path(p).read_text(encoding='utf-8') for p in args.padding]
    results = []
    with tempfile.TemporaryDirectory() as folder, Engine(args.programs, args.bundle, folder, args.precision, args.port) as engine:
        for path in args.sets:
            records = read_set(path)
            asked = [(q['q'], number) for number, record in enumerate(records) for q in record['qas']]
            owners = owners_of(asked)
            asked = [(q, owners[asked_as(q)]) for q, _ in asked]
            asked = random.Random(args.seed).sample(asked, min(args.questions, len(asked)))
            results.append(measure(engine, Path(path).name.split('.jsonl')[0], [r['context'] for r in records] + padding, asked,
                                   args.candidates, args.weights, folder))
            print(json.dumps(results[-1]), flush=True)
            if args.out:
                Path(args.out).write_text(json.dumps(results, indent=1) + '\n')
    print(table(results))
