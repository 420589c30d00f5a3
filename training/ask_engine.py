"""Questions through the engine on a CPU: what `training.evaluate` asks on a GPU, answered by `mneme ask`.

Usage: python3 -m training.ask_engine BUNDLE PREPARED EVAL_FOLDER [--documents 400 ...] [--characters 9000] [--dense 200] [--needles 40]
                                      [--out OUT.json] [--precision bf16] [--programs build/release/bin] [--wrong]
Each document is a piece of a held-out book with one fact of each set of held-out wordings (facts.DENSE); the statements of the other families
are spread over them; a few are ingested at a time, so their order is nearly that. Several numbers of documents: one memory that
grows to each in turn, with needles of its own for each. 16,500 characters are about 4,096 tokens: 4096 documents of them 16M.
The text of an answer is compared: a list has all values and nothing else, in any order. `read` counts questions for which one of the
passages read is of the right document, `heaviest` those for which the one with the largest weight is.
--wrong prints each wrong answer: a V before it says that the right document weighed most."""
import argparse
import concurrent.futures
import json
import random
import tempfile
import time
from pathlib import Path

from training import facts, needles
from training.engine import Engine, ingest
from training.evaluate import Evaluation, is_list_of
from training.tasks import LISTED

ANSWER_TOKENS = 48


def make(evaluation, sizes, count, rng):
    """Of each size, numbers of documents in rising order, {family: [Needle]}: as many dense facts of each set as documents, those of the
    sizes before among them, and `count` needles of each other family."""
    dense = {family: needles.dense_needles(evaluation.tokenizer, evaluation.lex, rng, sizes[-1], family) for family in facts.DENSE}
    maker = needles.Maker(evaluation.tokenizer, evaluation.lex, rng)
    return [{family: some[:size] for family, some in dense.items()} | {family: [one() for _ in range(count)] for family, one in maker.families.items()}
            for size in sizes]


def place(made, sizes, rng):
    """(statements of each document, {id of a statement: its document}). Statements of one needle stand in document order."""
    inserted, where = [[] for _ in range(sizes[-1])], {}
    for size, families in zip(sizes, made):
        for family, some in families.items():
            for number, needle in enumerate(some):
                places = [number] if family in facts.DENSE else sorted(rng.sample(range(size), len(needle.statements)))
                for document, statement in zip(places, needle.statements):
                    if id(statement) not in where:
                        inserted[document].append(statement)
                        where[id(statement)] = document
    return inserted, where


def write(evaluation, inserted, characters, rng):
    """The text of each document."""
    books, texts = [t for t in evaluation.book_texts if len(t) > 2 * characters], []
    for statements in inserted:
        book = rng.choice(books)
        at = rng.randrange(len(book) - characters)
        words = book[at:at + characters].split(' ')
        for statement in statements:
            words.insert(rng.randrange(len(words)), evaluation.tokenizer.decode(statement.ids))
        texts.append(' '.join(words))
    return texts


def is_exact(needle, said):
    if needle.separator == LISTED:
        return is_list_of(said, needle.values)
    return said.strip() == needle.separator.join(needle.values)


def ask(engine, evaluation, needle, right):
    """right: documents that hold the values."""
    answer = engine.run('ask', 'asked', evaluation.tokenizer.decode(needle.prompt), '--max-tokens', str(ANSWER_TOKENS))
    read = [(passage['weight'], int(passage['document'])) for passage in answer['results']]
    return {'exact': is_exact(needle, answer['answer']), 'read': any(document in right for _, document in read),
            'heaviest': bool(read) and max(read)[1] in right, 'question': evaluation.tokenizer.decode(needle.prompt), 'values': needle.values,
            'said': answer['answer']}


def spaced(some, count):
    count = min(count, len(some))
    return [some[int((i + 0.5) * len(some) / count)] for i in range(count)]


def shares(results):
    return {name: sum(r[name] for r in results) / len(results) for name in ('exact', 'heaviest', 'read')}


def ask_all(engine, evaluation, families, where, dense):
    """{family: [result]}, each family printed as it comes."""
    answers = {}
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for family, some in families.items():
            asked = spaced(some, dense) if family in facts.DENSE else some
            answers[family] = list(threads.map(lambda n: ask(engine, evaluation, n, {where[id(s)] for s in n.holders}), asked))
            figures = ' '.join(f'{100 * v:{w}.1f}' for v, w in zip(shares(answers[family]).values(), (7, 9, 6)))
            print(f'{family:24} {len(asked):>9} {figures}', flush=True)
    return answers


def print_wrong(answers):
    for family, results in answers.items():
        for r in results:
            if not r['exact']:
                print('   ', family, 'V' if r['heaviest'] else '-', r['question'], '| wanted', r['values'], '| said', repr(r['said']))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('--documents', type=int, nargs='+', default=[400])
    parser.add_argument('--characters', type=int, default=9_000, help='of book text a document')
    parser.add_argument('--dense', type=int, default=200, help='questions of each set of wordings')
    parser.add_argument('--needles', type=int, default=40, help='of each other family')
    parser.add_argument('--precision', default='bf16')
    parser.add_argument('--programs', default='build/release/bin')
    parser.add_argument('--port', type=int, default=7440)
    parser.add_argument('--seed', type=int, default=21)
    parser.add_argument('--folder', help='where the data lie meanwhile: 17 GB of 64M tokens')
    parser.add_argument('--out')
    parser.add_argument('--wrong', action='store_true')
    args = parser.parse_args()
    evaluation, rng = Evaluation(args.bundle, args.prepared, args.eval_folder, 0, 'cpu'), random.Random(args.seed)
    sizes = sorted(args.documents)
    made = make(evaluation, sizes, args.needles, rng)
    inserted, where = place(made, sizes, rng)
    texts, report, begin = write(evaluation, inserted, args.characters, rng), {}, 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, Engine(args.programs, args.bundle, folder, args.precision, args.port) as engine:
        for size, families in zip(sizes, made):
            began = time.time()
            ingest(engine, 'asked', texts[begin:size], folder, begin)
            begin = size
            tokens = engine.run('memories')['memories'][0]['tokens']
            print(f'{size} documents, {tokens} tokens; ingest {time.time() - began:.0f} s')
            print(f'{"":24} {"questions":>9} {"exact":>7} {"heaviest":>9} {"read":>6}', flush=True)
            answers = report[tokens] = ask_all(engine, evaluation, families, where, args.dense)
            if args.wrong:
                print_wrong(answers)
            if args.out:
                Path(args.out).write_text(json.dumps({t: {f: dict(questions=len(r), **shares(r)) for f, r in all_.items()} for t, all_ in report.items()},
                                                     indent=1) + '\n')
