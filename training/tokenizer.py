"""The SentencePiece tokenizer: how it is trained, and token positions by byte.

BPE with byte fallback, digits one by one, text kept as it is (identity normalizer): what the engine's encoder reads.
Digits one by one let a number be copied as a sequence of ten symbols instead of thousands of rare pieces.

Usage: python3 -m training.tokenizer TEXT OUT_FOLDER [--vocab-size 8192] [--sample-bytes 40000000]
TEXT holds documents separated by NUL (a plain text file is one document).
"""
import argparse
import random
from pathlib import Path

import numpy as np
import sentencepiece

from training.config import ANSWER_TOKEN, DOCUMENT_TOKEN, LINE_END_TOKEN, QUESTION_TOKEN


class Tokenizer:
    """A trained tokenizer and its special tokens. Not for sharing between processes; load one in each."""

    def __init__(self, model_file):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.document, self.question, self.answer, self.line_end = (
            self.pieces.piece_to_id(p) for p in (DOCUMENT_TOKEN, QUESTION_TOKEN, ANSWER_TOKEN, LINE_END_TOKEN))
        self.vocab_size = self.pieces.get_piece_size()
        self.piece_bytes = np.array([self._bytes_of(i) for i in range(self.vocab_size)], np.int64)

    def _bytes_of(self, piece_id):
        if self.pieces.is_byte(piece_id):
            return 1
        if self.pieces.is_control(piece_id):
            return 0
        return len(self.pieces.id_to_piece(piece_id).replace('\u2581', ' ').encode())

    def encode(self, text):
        """text -> list of ids. The first token carries the dummy prefix, a space."""
        return self.pieces.encode(text)

    def encode_answer(self, text):
        """The tokens that follow the answer token: a leading space, then the text (the question form of the bundles)."""
        return self.pieces.encode(' ' + text)

    def decode(self, ids):
        return self.pieces.decode([int(i) for i in ids])

    def token_span(self, ids, text, start, length):
        """First and last+1 token of text[start:start+length], where ids = encode(text)."""
        begin = 1 + len(text[:start].encode())                     # 1: the dummy prefix
        end = begin + len(text[start:start + length].encode())
        ends = np.cumsum(self.piece_bytes[np.asarray(ids, np.int64)])
        first = int(np.searchsorted(ends, begin, side='right'))
        last = int(np.searchsorted(ends, end, side='left'))
        return first, max(first, min(last, len(ids) - 1)) + 1


def train_tokenizer(text_file, folder, vocab_size=8192, sample_bytes=40_000_000, seed=0):
    """Writes tokenizer.model to `folder`, trained on a random sample of the documents of `text_file`."""
    from training.corpus import open_text                       # which reads through this module
    with open_text(text_file) as f:
        documents = f.read().split('\0')
    random.Random(seed).shuffle(documents)
    lines, used = [], 0
    for document in documents:
        for line in document.split('\n'):
            if line.strip():
                lines.append(line[:4000])
                used += len(line)
        if used > sample_bytes:
            break
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / 'tokenizer'), vocab_size=vocab_size, model_type='bpe',
        byte_fallback=True, split_digits=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
        character_coverage=0.9995, max_sentence_length=8192, num_threads=2, hard_vocab_limit=False, minloglevel=1,
        user_defined_symbols=[QUESTION_TOKEN, ANSWER_TOKEN, DOCUMENT_TOKEN])
    (folder / 'tokenizer.vocab').unlink()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('text')
    parser.add_argument('folder')
    parser.add_argument('--vocab-size', type=int, default=8192)
    parser.add_argument('--sample-bytes', type=int, default=40_000_000)
    args = parser.parse_args()
    train_tokenizer(args.text, args.folder, args.vocab_size, args.sample_bytes)
