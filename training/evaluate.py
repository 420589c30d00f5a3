"""What a bundle remembers: needles in memories of up to 256M tokens, real questions beside BM25, perplexity by memory length.

Usage: python3 -m training.evaluate BUNDLE PREPARED EVAL_FOLDER OUT.json [--sizes 64K 1M 16M 64M 256M] [--dense 16M 64M]
PREPARED gives the word lists and haystack text besides the held-out books; EVAL_FOLDER holds books/*.txt and question sets
NAME.jsonl (.zst, .xz). Writes OUT.json; training.report makes the table and the plot of it.
Answers are judged by their most likely tokens, one after the other (greedy): exact means all of them are right, the end too. A list
(several values, several keys, variables) is exact if it has all values and nothing else, in any order.
recall@k: among the k chunks with the highest score at the <a> token is one that holds the answer (or, where it crosses a
chunk boundary, a part of it)."""
import argparse
import collections
import json
import random
import re
import string
import time
from pathlib import Path

import numpy as np
import torch

from training import bundle, facts, needles
from training.asked_twice import asked_as, owners_of
from training.bm25 import Bm25, word_chunks
from training.corpus import Lexicon, open_text
from training.memory import LargeMemory, Writers
from training.rows import Memory, Part
from training.tasks import LISTED
from training.tokenizer import Tokenizer

SEGMENT = 4096
QUESTION_SETS = ('nq-open-oracle', 'squad-dev-v1.1', 'fairytaleqa-val', 'medquad-heldout', 'openstax-glossary-heldout')
LIST_TOKENS = 72                 # of an answer that is a list
BATCH_ROWS = 64                  # segments ingested, questions read, at a time


def parse_size(text):
    return int(text[:-1]) << {'K': 10, 'M': 20}[text[-1]]


def size_name(tokens):
    return f'{tokens >> 20}M' if tokens >= 1 << 20 else f'{tokens >> 10}K'


class Evaluation:
    """One bundle, and the text it is tried on."""

    def __init__(self, folder, prepared, eval_folder, hay_tokens, device):
        self.model, self.tokenizer = bundle.load(folder)
        self.model.to(device)
        self.device, self.chunk, self.eval_folder = device, self.model.c.chunk_size, Path(eval_folder)
        self.lex = Lexicon.load(Path(prepared) / 'lexicon.json', held_out=True)
        texts = [p.read_text(encoding='utf-8') for p in sorted((self.eval_folder / 'books').glob('*.txt'))]
        self.books = [np.array(self.tokenizer.encode(t), np.int32) for t in texts]
        self.book_texts = texts
        self.hay = np.concatenate(self.books + self._training_text(prepared, hay_tokens))

    def _training_text(self, prepared, count):
        """More haystack: the beginning of the prepared text, through this bundle's own tokenizer."""
        tokens = np.load(Path(prepared) / 'tokens.npy', mmap_mode='r')[:count]
        decode = Tokenizer(Path(prepared) / 'tokenizer.model').decode
        return [np.array(self.tokenizer.encode(decode(tokens[i:i + 65536])), np.int32) for i in range(0, len(tokens), 65536)]

    def memory(self, tokens):
        return LargeMemory(self.model, self.tokenizer, tokens // self.chunk, self.device, BATCH_ROWS)

    def ingest_hay(self, memory, segments, rng, inserted):
        """Segments of random windows of the haystack. inserted: {segment: [Statement]}; gives the statements positions."""
        hay, step = torch.from_numpy(self.hay).to(self.device), min(BATCH_ROWS, segments)
        span = torch.arange(SEGMENT, device=self.device)
        for at in range(0, segments, step):
            offset = torch.tensor([rng.randrange(len(self.hay) - SEGMENT) for _ in range(step)], device=self.device)
            ids = hay[offset[:, None] + span].long()
            for i in range(step):
                if at + i in inserted:
                    row = insert(ids[i].cpu().numpy(), inserted[at + i], rng, (at + i) * SEGMENT)
                    ids[i] = torch.from_numpy(row).to(self.device)
            memory.ingest(ids)

    def ask(self, memory, questions, end=None, ended=True):
        """questions: [(prompt ids, [Part])] -> per question (exact, chunks at <a> best first, score of the best).
        ended: the answer must end where its parts do."""
        results = []
        for at in range(0, len(questions), BATCH_ROWS):
            batch = questions[at:at + BATCH_ROWS]
            last = [self.tokenizer.document] if ended else []
            answers = [[*(i for part in parts for i in part.ids), *last] for _, parts in batch]
            rows = [[self.tokenizer.question, *prompt, self.tokenizer.answer, *answer] for (prompt, _), answer in zip(batch, answers)]
            logits, index, score = memory.read(self.padded(rows), end=end)
            best = logits.argmax(-1).cpu()
            for i, (row, answer) in enumerate(zip(rows, answers)):
                a = len(row) - len(answer) - 1
                order = score[i, a].sort(descending=True).indices
                results.append((best[i, a:a + len(answer)].tolist() == answer, index[i, a][order].tolist(), score[i, a].max().item()))
        return results

    def padded(self, rows):
        length = -(-max(map(len, rows)) // 32) * 32
        return torch.tensor([r + [self.tokenizer.document] * (length - len(r)) for r in rows], device=self.device)

    def needles(self, sizes, count, seed=1):
        """Every family at every size. One memory of the largest size: a smaller one is its beginning."""
        sizes, rng = sorted(sizes), random.Random(seed)
        memory, maker, inserted, asked = self.memory(sizes[-1]), needles.Maker(self.tokenizer, self.lex, rng), collections.defaultdict(list), []
        for size in sizes:
            segments, made = size // SEGMENT, []
            for make in maker.families.values():
                made += [(size, (i + 0.5) / count, make()) for i in range(count)]
            for _, depth, needle in made:
                spread(needle.statements, depth, segments, inserted, rng)
            asked += made
        self.ingest_hay(memory, sizes[-1] // SEGMENT, rng, inserted)
        chunks = Memory(self.tokenizer, 0, self.chunk)
        results = []
        for size in sizes:
            mine = [(d, n, n.parts(self.tokenizer, chunks)) for s, d, n in asked if s == size]
            answers = self.ask(memory, [(n.prompt, parts) for _, n, parts in mine], end=size // self.chunk)
            lists = [i for i, (_, n, _) in enumerate(mine) if n.separator == LISTED]
            for i, said in zip(lists, self.generate(memory, [mine[i][1].prompt for i in lists], LIST_TOKENS, size // self.chunk)):
                answers[i] = (is_list_of(said, mine[i][1].values), *answers[i][1:])
            results += [dict(size=size_name(size), family=n.family, depth=d, **judged(parts, answer))
                        for (d, n, parts), answer in zip(mine, answers)]
        return results

    def dense(self, sizes, count, seed=2, family='dense'):
        """One similar fact in every segment; `count` of them are asked, spread over the depth. family: of facts.DENSE."""
        sizes, rng = sorted(sizes), random.Random(seed)
        memory, segments = self.memory(sizes[-1]), sizes[-1] // SEGMENT
        made = needles.dense_needles(self.tokenizer, self.lex, rng, segments, family)
        self.ingest_hay(memory, segments, rng, {i: n.statements for i, n in enumerate(made)})
        chunks, results = Memory(self.tokenizer, 0, self.chunk), []
        for size in sizes:
            last = size // SEGMENT
            chosen = [int((i + 0.5) * last / min(count, last)) for i in range(min(count, last))]
            asked = [(i, made[i], made[i].parts(self.tokenizer, chunks)) for i in chosen]
            answers = self.ask(memory, [(n.prompt, parts) for _, n, parts in asked], end=size // self.chunk)
            results += [dict(size=size_name(size), family=made[0].family, depth=i / last, question=self.tokenizer.decode(n.prompt),
                             **judged(parts, answer)) for (i, n, parts), answer in zip(asked, answers)]
        return results

    def question_set(self, name, tokens, answers_max):
        """Passage recall of the model and of BM25 in a memory of `tokens` tokens, and token F1 of generated answers."""
        records = read_questions(self.eval_folder, name)
        rows, segment_rows, where, texts = [], [], [], []
        packer = Packer(self.tokenizer, self.chunk)
        for record in records:
            where.append(packer.add(self.tokenizer.encode(record['context'])))
            texts.append(record['context'])
        passages_chunks = packer.chunks
        for text, ids in zip(self.book_texts, self.books):
            for at in range(0, len(ids), SEGMENT - 1):
                if packer.chunks * self.chunk < tokens:
                    packer.add(ids[at:at + SEGMENT - 1].tolist())
                    texts.append(self.tokenizer.decode(ids[at:at + SEGMENT - 1]))
        rows, segment_rows, chunk_rows = packer.rows()
        memory = self.memory(len(rows) * SEGMENT)
        for at in range(0, len(rows), BATCH_ROWS):
            ids, segment = (torch.from_numpy(np.stack(x[at:at + BATCH_ROWS])).to(self.device) for x in (rows, segment_rows))
            memory.ingest(ids, segment)
        memory = compacted(memory, chunk_rows)
        asked = [(q, i) for i, r in enumerate(records) for q in r['qas']]
        answers = self.ask(memory, [(self.tokenizer.encode(q['q']), []) for q, _ in asked])
        owners = owners_of((q['q'], i) for q, i in asked)
        right = [set().union(*(where[i] for i in owners[asked_as(q['q'])])) for q, _ in asked]
        first = [a[1][0] in r for a, r in zip(answers, right)]
        eight = [bool(r.intersection(a[1])) for a, r in zip(answers, right)]
        index, owner = [], []
        for i, text in enumerate(texts):
            chunks = word_chunks(text)
            index += chunks
            owner += [i] * len(chunks)
        bm25 = Bm25(index)
        found = [[owner[c] for c in bm25.top(q['q'], 8)] for q, _ in asked]
        answerable = [(q, i) for q, i in asked if q.get('a')]
        sample = answerable[::max(1, len(answerable) // answers_max)][:answers_max] if answerable else []
        said = self.generate(memory, [self.tokenizer.encode(q['q']) for q, _ in sample]) if sample else []
        return {'set': name, 'questions': len(asked), 'memory_tokens': memory.count * self.chunk, 'passage_chunks': passages_chunks,
                'recall_at_1': float(np.mean(first)), 'recall_at_8': float(np.mean(eight)),
                'bm25_recall_at_1': float(np.mean([f[0] in owners[asked_as(q['q'])] for f, (q, _) in zip(found, asked)])),
                'bm25_recall_at_8': float(np.mean([bool(owners[asked_as(q['q'])].intersection(f)) for f, (q, _) in zip(found, asked)])),
                'answers': len(sample), 'f1': float(np.mean([best_f1(s, q) for s, (q, _) in zip(said, sample)])) if sample else None,
                'examples': [[q['q'], q['a'], s] for s, (q, _) in list(zip(said, sample))[:8]]}

    def generate(self, memory, prompts, tokens_max=20, end=None):
        """Greedy answers as text."""
        said = []
        for at in range(0, len(prompts), BATCH_ROWS):
            rows = [[self.tokenizer.question, *p, self.tokenizer.answer] for p in prompts[at:at + BATCH_ROWS]]
            width = max(map(len, rows)) + tokens_max + 1
            writers = Writers(memory, self.padded([r + [self.tokenizer.document] * (width - len(r)) for r in rows]), [len(r) for r in rows], end)
            answers, done = [[] for _ in rows], [False] * len(rows)
            for _ in range(tokens_max):
                for i, token in enumerate(writers.next().tolist()):
                    done[i] = done[i] or token == self.tokenizer.document
                    answers[i] += [] if done[i] else [token]
                if all(done):
                    break
            said += [self.tokenizer.decode(a) for a in answers]
        return said

    def other_text(self, path, count, prompt=24, answer=8, seed=3):
        """Text of another kind: English facts among it, one a segment, and verbatim recall: some tokens of it, what followed?
        There, recall looks for the chunk that holds the first token of the answer."""
        ids, rng = np.array(self.tokenizer.encode(Path(path).read_text(encoding='utf-8')), np.int32), random.Random(seed)
        segments = min(256, len(ids) // SEGMENT)
        made, chunks = needles.dense_needles(self.tokenizer, self.lex, rng, segments), Memory(self.tokenizer, 0, self.chunk)
        memory, rows = self.memory(segments * SEGMENT), []
        for i, needle in enumerate(made):
            rows.append(insert(ids[i * SEGMENT:(i + 1) * SEGMENT].astype(np.int64), needle.statements, rng, i * SEGMENT))
        for at in range(0, segments, BATCH_ROWS):
            memory.ingest(torch.from_numpy(np.stack(rows[at:at + BATCH_ROWS])).to(self.device))
        text, asked = np.concatenate(rows), [(n.prompt, n.parts(self.tokenizer, chunks)) for n in made[::max(1, segments // count)]]
        for _ in range(count):
            at = rng.randrange(prompt, len(text) - answer)
            told = self.tokenizer.encode_answer(self.tokenizer.decode(text[at:at + answer]))
            asked.append((text[at - prompt:at].tolist(), [Part(told, chunks.chunks(at, at + 1))]))
        facts_asked = len(asked) - count
        answers = self.ask(memory, asked[:facts_asked]) + self.ask(memory, asked[facts_asked:], ended=False)
        return [dict(size=size_name(segments * SEGMENT), family=f'{Path(path).stem}: {"dense" if i < facts_asked else "verbatim"}', depth=0.5,
                     **judged(parts, a)) for i, ((_, parts), a) in enumerate(zip(asked, answers))]

    def perplexity(self, lengths, readers=32, reader_tokens=1024):
        """Of `readers` windows of held-out books, each with the `length` tokens before it as memory, for each length."""
        text = np.concatenate(self.books)
        text = text[:len(text) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
        memory = self.memory(text.size)
        for at in range(0, len(text), BATCH_ROWS):
            memory.ingest(torch.from_numpy(text[at:at + BATCH_ROWS]).long().to(self.device))
        text, first = text.reshape(-1), min(max(lengths), text.size // 2) // SEGMENT + 1
        starts = [s * SEGMENT for s in np.linspace(first, text.size // SEGMENT - 2, readers).astype(int)]
        result = []
        for length in lengths:
            losses = []
            for start in starts:
                ids = torch.from_numpy(text[start:start + reader_tokens + 1]).long().to(self.device)[None]
                begin = max(0, start - length) // self.chunk
                logits = memory.read(ids[:, :-1], begin, start // self.chunk)[0]
                losses.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item())
            result.append({'memory_tokens': length, 'perplexity': float(np.exp(np.mean(losses)))})
        return result


class Packer:
    """Documents into rows of one segment, each at a chunk boundary. `chunks` counts the chunks so far, in document order."""

    def __init__(self, tokenizer, chunk):
        self.document, self.chunk, self.chunks, self.pieces = tokenizer.document, chunk, 0, []

    def add(self, ids):
        """Adds one document of at most a segment (longer ones are cut); returns the set of its chunks."""
        ids = [self.document, *ids][:SEGMENT]
        ids += [self.document] * (-len(ids) % self.chunk)
        self.pieces.append(np.array(ids, np.int64))
        mine = set(range(self.chunks, self.chunks + len(ids) // self.chunk))
        self.chunks += len(mine)
        return mine

    def rows(self):
        """(ids [SEGMENT] of each row, their document numbers, chunks in use of each row)."""
        rows, segments, used = [[]], [[]], [0]
        for number, piece in enumerate(self.pieces):
            if used[-1] + len(piece) > SEGMENT:
                rows.append([])
                segments.append([])
                used.append(0)
            rows[-1].append(piece)
            segments[-1].append(np.full(len(piece), number + 1))
            used[-1] += len(piece)
        fill = [np.full(SEGMENT - u, self.document) for u in used]
        return ([np.concatenate([*r, f]) for r, f in zip(rows, fill)], [np.concatenate([*s, 0 * f]) for s, f in zip(segments, fill)],
                [u // self.chunk for u in used])


def compacted(memory, chunk_rows):
    """Drops the padding chunks at the end of each row."""
    per_row = SEGMENT // memory.model.c.chunk_size
    keep = torch.cat([torch.arange(n) + i * per_row for i, n in enumerate(chunk_rows)]).to(memory.device)
    memory.K, memory.V, memory.landmarks, memory.count = memory.K[keep], memory.V[keep], memory.landmarks[keep], len(keep)
    return memory


def spread(statements, depth, segments, inserted, rng):
    """Chooses a segment for each statement: the first at `depth`, in order if there are two, the others anywhere."""
    at = min(segments - 1, int(depth * segments))
    if len(statements) == 2:
        places = [at, rng.randrange(at, segments)]
    else:
        places = [at] + [rng.randrange(segments) for _ in statements[1:]]
    for place, statement in zip(places, statements):
        inserted[place].append(statement)


def insert(ids, statements, rng, position):
    """Puts statements at random places of a segment that begins at token `position`; later text is pushed out."""
    room = len(ids) - sum(len(s.ids) for s in statements)
    cuts = sorted(rng.randrange(room + 1) for _ in statements)
    parts, previous, done = [], 0, 0
    for cut, statement in zip(cuts, statements):
        parts += [ids[previous:cut], np.array(statement.ids)]
        statement.position = position + cut + done
        previous, done = cut, done + len(statement.ids)
    return np.concatenate([*parts, ids[previous:room]])


def is_list_of(said, values):
    """Whether the lines of an answer are these values and nothing else, in any order."""
    return sorted(line.strip() for line in said.split('\n') if line.strip()) == sorted(values)


def judged(parts, answer):
    """A list has values from several chunks: any of them counts for recall."""
    exact, chunks, score = answer
    gold = set().union(*(part.gold for part in parts))
    return {'exact': exact, 'recall_at_1': chunks[0] in gold, 'recall_at_8': bool(gold.intersection(chunks)), 'score': round(score, 2)}


def read_questions(folder, name):
    path = next((p for suffix in ('', '.zst', '.xz') if (p := Path(folder) / f'{name}.jsonl{suffix}').exists()), None)
    if path is None:
        raise SystemExit(f'{folder} has no {name}.jsonl, .jsonl.zst or .jsonl.xz')
    with open_text(path) as f:
        return [json.loads(line) for line in f]


def normalised(text):
    """SQuAD's: lower case, no punctuation, no articles."""
    text = ''.join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def best_f1(said, question):
    """Token F1 against the best of the given answers."""
    best, mine = 0.0, collections.Counter(normalised(said))
    for answer in [question['a'], *question.get('alt', [])]:
        right = collections.Counter(normalised(answer))
        common = sum((mine & right).values())
        if common:
            best = max(best, 2 * common / (sum(mine.values()) + sum(right.values())))
    return best


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('out')
    parser.add_argument('--sizes', nargs='*', default=['64K', '1M', '16M', '64M', '256M'])
    parser.add_argument('--dense', nargs='*', default=['16M', '64M'])
    parser.add_argument('--dense-fresh', nargs='*', default=['16M'], help='the same in the second set of held-out wordings')
    parser.add_argument('--dense-blind', nargs='*', default=['16M'], help='in the third, of an author who knew nothing of the project')
    parser.add_argument('--questions-each', type=int, default=64)
    parser.add_argument('--dense-questions', type=int, default=512)
    parser.add_argument('--sets', nargs='*', default=QUESTION_SETS)
    parser.add_argument('--set-tokens', default='1M')
    parser.add_argument('--answers', type=int, default=256)
    parser.add_argument('--perplexity', nargs='*', default=['0K', '4K', '64K', '1M'])
    parser.add_argument('--other', nargs='*', default=[], help='text files of other kinds (code, another language)')
    parser.add_argument('--hay-tokens', type=int, default=6_000_000)
    args = parser.parse_args()
    torch.set_float32_matmul_precision('high')
    began = time.time()
    evaluation = Evaluation(args.bundle, args.prepared, args.eval_folder, args.hay_tokens, 'cuda' if torch.cuda.is_available() else 'cpu')
    report = {'bundle': Path(args.bundle).name, 'needles': [], 'dense': [], 'sets': [], 'perplexity': []}

    def finish(part):
        """Keeps what there is so far: a run that is cut short leaves its results."""
        Path(args.out).write_text(json.dumps(report))
        print(f'{time.time() - began:.0f} s: {part}', flush=True)

    finish('text ready')
    for family, sizes in zip(facts.DENSE, (args.dense, args.dense_fresh, args.dense_blind)):
        if sizes:
            report['dense'] += evaluation.dense([parse_size(s) for s in sizes], args.dense_questions, family=family)
            finish(family)
    if args.perplexity:
        report['perplexity'] = evaluation.perplexity([parse_size(s) for s in args.perplexity])
        finish('perplexity')
    for name in args.sets:
        if args.sets is QUESTION_SETS and not any(Path(args.eval_folder).glob(f'{name}.jsonl*')):
            print(f'{name} is not in {args.eval_folder}: left out', flush=True)
            continue
        report['sets'].append(evaluation.question_set(name, parse_size(args.set_tokens), args.answers))
        finish(name)
    for path in args.other:
        report['dense'] += evaluation.other_text(path, args.questions_each)
        finish(path)
    if args.sizes:
        report['needles'] = evaluation.needles([parse_size(s) for s in args.sizes], args.questions_each)
        finish('needles')
