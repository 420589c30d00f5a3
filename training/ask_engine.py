"""Questions through the engine on a CPU: what `training.evaluate` asks on a GPU, in a small memory, answered by `mneme ask`.

Usage: python3 -m training.ask_engine BUNDLE PREPARED EVAL_FOLDER [--documents 400] [--dense 200] [--needles 40] [--out OUT.json]
                                      [--precision bf16] [--programs build/release/bin] [--wrong]
Each document is a piece of a held-out book with one fact of each set of held-out wordings (facts.DENSE); the statements of the other families
are spread over them; a few are ingested at a time, so their order is nearly that. The text of an answer is compared: a list has all
values and nothing else, in any order. `read` counts questions for which one of the passages read is of the right document, `heaviest`
those for which the one with the largest weight is.
--wrong prints each wrong answer: a V before it says that the right document weighed most."""
import argparse
import concurrent.futures
import json
import random
import tempfile
from pathlib import Path

from training import facts, needles
from training.engine import Engine, ingest
from training.evaluate import Evaluation, is_list_of
from training.tasks import LISTED

CHARACTERS = 9_000               # of book text a document: with the statements fewer tokens than a segment
ANSWER_TOKENS = 48


def make(evaluation, documents, count, rng):
    """{family: [Needle]}: as many dense facts of each set as documents, `count` needles of each other family."""
    made = {family: needles.dense_needles(evaluation.tokenizer, evaluation.lex, rng, documents, family) for family in facts.DENSE}
    maker = needles.Maker(evaluation.tokenizer, evaluation.lex, rng)
    return made | {family: [one() for _ in range(count)] for family, one in maker.families.items()}


def write(evaluation, made, documents, rng):
    """([text of each document], {id of a statement: its document}). Statements of one needle stand in document order."""
    inserted, where = [[] for _ in range(documents)], {}
    for family, some in made.items():
        for number, needle in enumerate(some):
            places = [number] if family in facts.DENSE else sorted(rng.sample(range(documents), len(needle.statements)))
            for place, statement in zip(places, needle.statements):
                inserted[place].append(evaluation.tokenizer.decode(statement.ids))
                where[id(statement)] = place
    books, texts = [t for t in evaluation.book_texts if len(t) > 2 * CHARACTERS], []
    for statements in inserted:
        book = rng.choice(books)
        at = rng.randrange(len(book) - CHARACTERS)
        words = book[at:at + CHARACTERS].split(' ')
        for statement in statements:
            words.insert(rng.randrange(len(words)), statement)
        texts.append(' '.join(words))
    return texts, where


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


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('--documents', type=int, default=400)
    parser.add_argument('--dense', type=int, default=200, help='questions of each set of wordings')
    parser.add_argument('--needles', type=int, default=40, help='of each other family')
    parser.add_argument('--precision', default='bf16')
    parser.add_argument('--programs', default='build/release/bin')
    parser.add_argument('--port', type=int, default=7440)
    parser.add_argument('--seed', type=int, default=21)
    parser.add_argument('--out')
    parser.add_argument('--wrong', action='store_true')
    args = parser.parse_args()
    evaluation, rng = Evaluation(args.bundle, args.prepared, args.eval_folder, 0, 'cpu'), random.Random(args.seed)
    made = make(evaluation, args.documents, args.needles, rng)
    texts, where = write(evaluation, made, args.documents, rng)
    report = {}
    with tempfile.TemporaryDirectory() as folder, Engine(args.programs, args.bundle, folder, args.precision, args.port) as engine:
        ingest(engine, 'asked', texts, folder)
        print(f'{"":24} {"questions":>9} {"exact":>7} {"heaviest":>9} {"read":>6}')
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            for family, some in made.items():
                asked = spaced(some, args.dense) if family in facts.DENSE else some
                found = list(threads.map(lambda n: ask(engine, evaluation, n, {where[id(s)] for s in n.holders}), asked))
                report[family] = dict(questions=len(found), **shares(found))
                print(f'{family:24} {len(found):>9} ' + ' '.join(f'{100 * v:{w}.1f}' for v, w in zip(shares(found).values(), (7, 9, 6))), flush=True)
                for r in found if args.wrong else ():
                    if not r['exact']:
                        print('   ', 'V' if r['heaviest'] else '-', r['question'], '| wanted', r['values'], '| said', repr(r['said']))
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + '\n')
