"""Text -> what training reads: token file, document starts, word lists.

A prepared folder holds
  tokenizer.model   (copied)
  tokens.npy        uint16 [tokens], all documents one after the other
  documents.npy     int64 [documents + 1], where each begins
  lexicon.json      {"words": {word: count}, "names": [...]}, see Lexicon
  questions.jsonl   real questions with their passages, one JSON a line (optional)

Usage: python3 -m training.corpus TEXT TOKENIZER_FOLDER OUT_FOLDER [--questions FILE ...] [--exclude SET.jsonl ...] [--tokens-max N]
--exclude: question sets of evaluation, whose passages the text must not hold: lines, and questions' records, that share half of their
runs of 12 words with one are left out.
"""
import argparse
import collections
import contextlib
import json
import lzma
import math
import multiprocessing
import random
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np

from training.tokenizer import Tokenizer

WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


@contextlib.contextmanager
def open_text(path):
    """A text file for reading; .zst goes through the zstd program, .xz through lzma."""
    path = str(path)
    if path.endswith('.zst'):
        with subprocess.Popen(['zstd', '-dc', '--long=27', path], stdout=subprocess.PIPE, text=True, encoding='utf-8') as p:
            yield p.stdout
    elif path.endswith('.xz'):
        with lzma.open(path, 'rt', encoding='utf-8') as f:
            yield f
    else:
        with open(path, encoding='utf-8', newline='') as f:
            yield f


def is_held_out(word):
    """One word in eight never makes a key, a value or a relation in training (it may occur in prose)."""
    return zlib.crc32(word.lower().encode()) % 8 == 0


class Lexicon:
    """Word counts of the training text: material for generated facts, and weights for keyword questions.

    `held_out` chooses the words that training must not see in facts (True for evaluation)."""

    def __init__(self, counts, names, held_out=False):
        self.counts = counts
        self.total = max(1, sum(counts.values()))
        mine = [w for w in counts if is_held_out(w) == held_out]
        ascii_ = [w for w in mine if w.isascii()]
        mine = ascii_ if len(ascii_) >= len(mine) / 2 else mine       # of English, without what is foreign in it
        self.words = [w for w in mine if 4 <= len(w) <= 11 and counts[w] < self.total / 5000] or mine
        self.nouns = [w for w in mine if 3 <= len(w) <= 9 and self.total / 2e6 < counts[w] < self.total / 3000] or self.words
        self.names = [w for w in names if is_held_out(w) == held_out]

    @staticmethod
    def load(path, held_out=False):
        stored = json.loads(Path(path).read_text())
        return Lexicon(stored['words'], stored['names'], held_out)

    def weight(self, word):
        """Inverse frequency, about 0 for "the" and above 8 for a rare word."""
        return max(0.0, math.log(self.total / (40.0 * (1 + self.counts.get(word.lower(), 0)))))


def count_words(documents, words_max=40_000, names_max=4_000):
    """The most frequent words, and the words that stand capitalised inside sentences."""
    lower, inside = collections.Counter(), collections.Counter()
    for text in documents:
        lower.update(w for w in WORD.findall(text) if w.islower())
        inside.update(re.findall(r'(?<=[a-z,] )[A-Z][a-z]{2,9}(?=[ ,.])', text))
    names = [w for w, n in inside.most_common(3 * names_max) if n > 4 * lower.get(w.lower(), 0)][:names_max]
    return dict(lower.most_common(words_max)), names


def passage_of(line):
    """The passage of a question set's line; empty where it has none (bAbI has facts, Persona-Chat turns)."""
    return json.loads(line).get('context') or ''


class HeldOut:
    """Passages of evaluation, by their runs of RUN words; a shorter one is a run of its own."""
    RUN, SHARE = 12, 0.5

    def __init__(self, files):
        self.runs = set()
        for name in files:
            with open_text(name) as f:
                for line in f:
                    self.runs.update(self.runs_of(passage_of(line)))

    def runs_of(self, text):
        words = [w.lower() for w in WORD.findall(text)]
        return [hash(tuple(words[i:i + self.RUN])) for i in range(max(1, len(words) - self.RUN + 1))] if words else []

    def holds(self, text):
        runs = self.runs_of(text)
        return bool(runs) and sum(r in self.runs for r in runs) >= self.SHARE * len(runs)

    def without(self, document):
        """A document without lines of these passages."""
        return '\n'.join(line for line in document.split('\n') if not self.holds(line))


def _encode_documents(arguments):
    tokenizer_file, texts = arguments
    tokenizer = Tokenizer(tokenizer_file)
    return [np.array(tokenizer.encode(t), np.uint16) for t in texts]


def prepare(text_file, tokenizer_folder, folder, question_files=(), tokens_max=None, seed=0, processes=None, exclude=()):
    """Writes the prepared folder. With tokens_max, a random choice of documents of about that many tokens."""
    held_out = HeldOut(exclude)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_text(text_file) as f:
        documents = f.read().split('\0')
    if exclude:
        documents = [held_out.without(d) for d in documents]
    documents = [d for d in documents if d.strip()]
    random.Random(seed).shuffle(documents)
    counts, names = count_words(documents[::3] if len(documents) > 3000 else documents)
    (folder / 'lexicon.json').write_text(json.dumps({'words': counts, 'names': names}))
    tokenizer_file = Path(tokenizer_folder) / 'tokenizer.model'
    if tokenizer_file.resolve() != (folder / 'tokenizer.model').resolve():
        shutil.copy(tokenizer_file, folder / 'tokenizer.model')
    groups = [(str(tokenizer_file), documents[i:i + 64]) for i in range(0, len(documents), 64)]
    encoded, total = [], 0
    with multiprocessing.Pool(processes) as pool:
        for part in pool.imap(_encode_documents, groups):
            encoded += part
            total += sum(map(len, part))
            if tokens_max and total >= tokens_max:
                break
    np.save(folder / 'tokens.npy', np.concatenate(encoded))
    np.save(folder / 'documents.npy', np.cumsum([0] + [len(e) for e in encoded]))
    with open(folder / 'questions.jsonl', 'w', encoding='utf-8') as out:
        for name in question_files:
            with open_text(name) as f:
                out.writelines(line.rstrip('\n') + '\n' for line in f
                               if line.strip() and not (exclude and held_out.holds(passage_of(line))))
    return total


class Corpus:
    """Token windows of the prepared text. Read-only; cheap to open in each worker (memory-mapped)."""

    def __init__(self, folder, tokenizer):
        self.tokens = np.load(Path(folder) / 'tokens.npy', mmap_mode='r')
        self.documents = np.load(Path(folder) / 'documents.npy')
        self.tokenizer = tokenizer
        is_start = [tokenizer.pieces.id_to_piece(i).startswith('\u2581') for i in range(tokenizer.vocab_size)]
        self.starts_word = np.array(is_start)

    def window(self, rng, length):
        """`length` consecutive tokens of one document where it is long enough, else across documents; int64."""
        for _ in range(8):
            document = int(np.searchsorted(self.documents, rng.randrange(len(self.tokens)), side='right')) - 1
            begin, end = int(self.documents[document]), int(self.documents[document + 1])
            if end - begin > length:
                break
        else:
            begin, end = 0, len(self.tokens)
        if end - begin <= length:
            repeats = -(-length // len(self.tokens))
            return np.tile(np.asarray(self.tokens, np.int64), repeats)[:length]
        at = rng.randrange(begin, end - length)
        return np.asarray(self.tokens[at:at + length], np.int64)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('text')
    parser.add_argument('tokenizer_folder')
    parser.add_argument('folder')
    parser.add_argument('--questions', nargs='*', default=[])
    parser.add_argument('--exclude', nargs='*', default=[], help='question sets of evaluation')
    parser.add_argument('--tokens-max', type=int)
    parser.add_argument('--processes', type=int)
    args = parser.parse_args()
    tokens = prepare(args.text, args.tokenizer_folder, args.folder, args.questions, args.tokens_max, processes=args.processes, exclude=args.exclude)
    print(f'{tokens} tokens in {args.folder}')
