"""Rows -> batches of tensors, made by worker processes."""
import random

import numpy as np
import torch

from training import tasks
from training.corpus import Corpus, Lexicon
from training.questions import QuestionSets
from training.told import values_of
from training.tokenizer import Tokenizer

TEXT_QUERY_STRIDE = 32          # every so many plain-text positions take part in the loss against unrelated chunks


def collate(rows, tokenizer):
    """[Row] -> dict of tensors. memory [B,M], reader and its fields [B,L]; label_at: flat positions in [B,L] whose next token counts; values: of the readers (told.py); for
    the n queries of the batch: query_at [n] (flat position in [B,L]), query_is [n] (FIRST, LATER or SWITCH), query_kind [n] (KINDS, at
    FIRST), gold [n,C], own_row_only [n]; text_at [m] flat positions."""
    stacked = {name: torch.from_numpy(np.stack([getattr(r, name) for r in rows])) for name in
               ('memory', 'memory_segment', 'reader', 'reader_segment', 'label', 'text_weight', 'answer_weight')}
    query = np.stack([r.query for r in rows])
    at = query.reshape(-1).nonzero()[0]
    gold = np.stack([r.gold for r in rows]).reshape(query.size, -1)[at]
    text_at = np.stack([r.text_weight for r in rows]).reshape(-1).nonzero()[0][::TEXT_QUERY_STRIDE]
    kind = np.stack([r.kind for r in rows]).reshape(-1)[at]
    label_at = np.stack([(r.text_weight > 0) | (r.answer_weight > 0) for r in rows]).reshape(-1).nonzero()[0]
    return {**stacked, 'values': values_of(stacked['reader'], tokenizer), 'label_at': torch.from_numpy(label_at), 'query_at': torch.from_numpy(at),
            'query_is': torch.from_numpy(query.reshape(-1)[at]), 'query_kind': torch.from_numpy(kind),
            'gold': torch.from_numpy(gold),
            'own_row_only': torch.from_numpy(np.stack([r.own_row_only for r in rows]).reshape(-1)[at]), 'text_at': torch.from_numpy(text_at)}


def open_world(folder, config, reader_tokens, row_tokens=4096, held_out=False):
    """The World of a prepared folder. Rows hold row_tokens tokens, of which reader_tokens belong to the reader."""
    tokenizer = Tokenizer(f'{folder}/tokenizer.model')
    questions = QuestionSets(f'{folder}/questions.jsonl')
    return tasks.World(tokenizer, Corpus(folder, tokenizer), Lexicon.load(f'{folder}/lexicon.json', held_out),
                       questions if questions.sources else None, row_tokens - reader_tokens, reader_tokens, config.chunk_size)


class Batches(torch.utils.data.IterableDataset):
    """An endless stream of batches; each worker draws its own from its own seed."""

    def __init__(self, folder, config, rows, seed, reader_tokens=1024, row_tokens=4096):
        self.arguments, self.rows, self.seed = (folder, config, reader_tokens, row_tokens), rows, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f'{self.seed}/{worker.id if worker else 0}')
        world = open_world(*self.arguments)
        while True:
            yield collate(tasks.batch_rows(world, rng, self.rows), world.tokenizer)


def loader(dataset, workers):
    """Batches as the dataset makes them; pinned, a few ahead."""
    options = {'prefetch_factor': 4, 'persistent_workers': True} if workers else {}
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)
