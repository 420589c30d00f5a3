"""One training row: a memory of M tokens and a reader of L tokens that asks about it.

The reader is a sequence of questions `<q> question <a> answer <doc>`, each beginning with zero recurrent state, or plain
text that continues the memory. All a reader knows of the memory comes through retrieval, as in the service."""
from dataclasses import dataclass, field

import numpy as np

IGNORED, GOLD = 2, 1            # values of Row.gold
FIRST, LATER, SWITCH = 1, 2, 3  # values of Row.query; SWITCH: the answer goes on from another chunk
SWITCH_TOKENS = 2               # a value's first tokens: the space piece that SentencePiece may write, and the value's own
START_WEIGHT = 3.0              # in the loss, of those: they decide which value is told, the others go on with it


# Families whose retrieval the log shows one by one.
KINDS = ['', 'single', 'multi_query', 'multi_value', 'updates', 'chains', 'two_hops', 'keywords', 'continuation', 'real_questions', 'dialogue']


@dataclass
class Part:
    """Consecutive answer tokens that come from the same chunks. `gold` chunks hold them; `ignored` ones may match too."""
    ids: list
    gold: set
    ignored: set = field(default_factory=set)


@dataclass
class Question:
    prompt: list                 # token ids between <q> and <a>
    parts: list                  # [Part]
    own_row_only: bool = False   # ambiguous outside its own memory: other rows are no negatives
    kind: str = ''               # family, for the log
    weight: float = 1.0          # of its answer tokens in the loss
    cut: bool = False            # the answer goes on behind its parts: its end is not taught
    listed: bool = False         # the answer is a list, each value with its end; that nothing follows is told by finding nothing


@dataclass
class Row:
    """M memory tokens in C chunks, L reader tokens. Targets are for the token that follows each position."""
    memory: np.ndarray           # int64 [M]
    memory_segment: np.ndarray   # int64 [M]; recurrent state restarts where it changes
    reader: np.ndarray           # int64 [L]
    reader_segment: np.ndarray   # int64 [L]
    label: np.ndarray            # int64 [L]
    text_weight: np.ndarray      # float32 [L], of plain text
    answer_weight: np.ndarray    # float32 [L], of answers
    query: np.ndarray            # uint8 [L]: 0 none, FIRST at <a>, LATER or SWITCH in an answer
    kind: np.ndarray             # uint8 [L]: KINDS of the question at its <a>
    gold: np.ndarray             # uint8 [L, C]
    own_row_only: np.ndarray     # bool [L]


class Memory:
    """The memory side of a row while it is being written."""

    def __init__(self, tokenizer, tokens_max, chunk_size):
        self.document_id, self.max, self.chunk_size = tokenizer.document, tokens_max, chunk_size
        self.ids, self.segments, self.length, self.segment = [], [], 0, 0

    @property
    def room(self):
        return self.max - self.length

    def begin_document(self):
        """Pads to a chunk boundary, restarts the state, writes the document token."""
        self.append([self.document_id] * (-self.length % self.chunk_size))
        self.segment += 1
        self.append([self.document_id])

    def append(self, ids):
        """Adds tokens and returns the position of the first."""
        at = self.length
        self.ids.append(np.asarray(ids, np.int64))
        self.segments.append(np.full(len(ids), self.segment, np.int64))
        self.length += len(ids)
        return at

    def chunks(self, first, last):
        """The chunks that hold tokens [first, last)."""
        return set(range(first // self.chunk_size, (last - 1) // self.chunk_size + 1))

    def array(self):
        return np.concatenate(self.ids)[:self.max] if self.ids else np.zeros(0, np.int64)


def finish_row(tokenizer, memory, questions, reader_max):
    """Memory and questions -> Row. Questions that do not fit into the reader, or whose gold was cut off, are left out."""
    length, chunks = reader_max, memory.max // memory.chunk_size
    ids, segment, row = [], [], empty_row(memory, length, chunks)
    for number, question in enumerate(questions):
        answer = [i for part in question.parts for i in part.ids]
        if not answer or any(c >= chunks for part in question.parts for c in part.gold):
            continue
        block = [tokenizer.question, *question.prompt, tokenizer.answer, *answer, tokenizer.document]
        if len(ids) + len(block) > length + 1:
            continue
        at = len(ids) + len(question.prompt) + 1               # position of <a>
        row.query[at], row.kind[at] = FIRST, KINDS.index(question.kind)
        for number_of_part, part in enumerate(question.parts):
            for offset in range(len(part.ids)):
                row.answer_weight[at] = question.weight * (START_WEIGHT if offset < SWITCH_TOKENS else 1.0)
                row.own_row_only[at] = question.own_row_only
                begins = number_of_part > 0 and offset < SWITCH_TOKENS
                mark(row, at, part, row.query[at] or (SWITCH if begins else LATER), chunks)
                at += 1
        if at < length and not question.cut:                   # <doc> ends the answer; only the chunk that was read last tells
            row.answer_weight[at] = question.weight
            row.own_row_only[at] = question.own_row_only
            if question.listed:
                row.query[at] = LATER                          # no chunk is gold: nothing is left to find
            else:
                mark(row, at, question.parts[-1], LATER, chunks)
        ids += block
        segment += [number + 1] * len(block)
    padding = length + 1 - len(ids)
    ids = np.array(ids + [tokenizer.document] * padding, np.int64)
    row.reader, row.label = ids[:-1], ids[1:]
    row.reader_segment = np.array(segment + [len(questions) + 1] * padding, np.int64)[:-1]
    return row


def mark(row, at, part, query, chunks):
    """Position `at` of the reader must find the gold chunks of `part`."""
    row.query[at] = query if part.gold else 0
    row.gold[at, [c for c in part.ignored if c < chunks]] = IGNORED
    row.gold[at, list(part.gold)] = GOLD


def finish_text_row(memory, text, length, chunks):
    """A reader of plain text: text [length + 1] token ids."""
    row = empty_row(memory, length, chunks)
    row.reader, row.label = text[:-1], text[1:]
    row.text_weight[:] = 1
    return row


def empty_row(memory, length, chunks):
    return Row(memory.array(), np.concatenate(memory.segments)[:memory.max], None, np.zeros(length, np.int64), None,
               np.zeros(length, np.float32), np.zeros(length, np.float32), np.zeros(length, np.uint8), np.zeros(length, np.uint8),
               np.zeros((length, chunks), np.uint8), np.zeros(length, bool))
