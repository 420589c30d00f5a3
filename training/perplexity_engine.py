"""Perplexity of held-out books through the engine, by how much of the text before it lies in memory: `evaluate`'s, without a GPU.

Usage: python3 -m training.perplexity_engine BUNDLE BOOK.txt ... [--readers 32] [--tokens 1048576] [--precision bf16] [--programs build/release/bin]
The books are one text, cut into segments, each a document. Readers are the first quarters of segments, spread over what follows the first --tokens;
each is scored without memory, with a memory of the segment before it, of the 16 before, and of all before, which are --tokens or more."""
import argparse
import json
import math
import tempfile
from pathlib import Path

from training.config import read_config
from training.engine import Engine, ingest
from training.tokenizer import Tokenizer

READER_SHARE = 4                 # a reader is so small a part of a segment


def cut(text, tokenizer, tokens):
    """Pieces of so many tokens; the document's own token has its place besides."""
    ids = tokenizer.encode(text)
    return [tokenizer.decode(ids[at:at + tokens - 1]) for at in range(0, len(ids) - tokens, tokens - 1)]


def readers(segments, first, count):
    """Numbers of segments from `first` on, spread evenly."""
    return sorted({first + round(i * (segments - 1 - first) / max(1, count - 1)) for i in range(count)})


def score(engine, memory, text):
    scored = engine.run('score', memory, text)
    return scored['log_likelihood'], scored['token_count']


def measure(engine, segments, tokenizer, folder, first, count, segment_tokens):
    """{what is in memory: perplexity}."""
    totals, stored = {}, 0
    for at in readers(len(segments), first, count):
        text = tokenizer.decode(tokenizer.encode(segments[at])[:segment_tokens // READER_SHARE])
        ingest(engine, 'all', segments[stored:at], folder, stored)
        stored = at
        memories = {'none': '-', f'{segment_tokens}': f'one-{at}', f'{16 * segment_tokens}': f'some-{at}', f'{first * segment_tokens} or more': 'all'}
        for name, before in ((f'one-{at}', 1), (f'some-{at}', 16)):
            ingest(engine, name, segments[max(0, at - before):at], folder)
        for name, memory in memories.items():
            likelihood, tokens = score(engine, memory, text)
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + likelihood, before[1] + tokens)
        print(at, {name: round(math.exp(-l / n), 2) for name, (l, n) in totals.items()}, flush=True)
    return {name: math.exp(-l / n) for name, (l, n) in totals.items()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bundle')
    parser.add_argument('books', nargs='+')
    parser.add_argument('--readers', type=int, default=32)
    parser.add_argument('--tokens', type=int, default=1 << 20)
    parser.add_argument('--precision', default='bf16')
    parser.add_argument('--programs', default='build/release/bin')
    parser.add_argument('--port', type=int, default=7440)
    parser.add_argument('--out')
    args = parser.parse_args()
    tokenizer, segment_tokens = Tokenizer(Path(args.bundle) / 'tokenizer.model'), read_config(args.bundle).segment_size
    segments = cut('\n'.join(Path(book).read_text(encoding='utf-8') for book in sorted(args.books)), tokenizer, segment_tokens)
    first = args.tokens // segment_tokens
    if len(segments) <= first:
        raise SystemExit(f'the books have {len(segments)} segments of {segment_tokens} tokens; --tokens {args.tokens} needs more than {first}')
    with tempfile.TemporaryDirectory() as folder, Engine(args.programs, args.bundle, folder, args.precision, args.port) as engine:
        result = measure(engine, segments, tokenizer, folder, first, args.readers, segment_tokens)
    print(json.dumps(result))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + '\n')
