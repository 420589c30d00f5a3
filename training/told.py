"""Lists: each chunk is told once. An answer's values stand one a line; the chunk that a value was read from is scored lower from that
line's end on, until the answer ends, so that the next value's chunk comes out on top, and none does behind the last one.

Shapes: B rows, L tokens, k chunks chosen by each, G values of a row. reference.py says the same one token after the other."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Values:
    """Which value of which answer each token of some readers is about. A token is about the value that is told behind it: `<a>` begins the
    first, each line's end the next."""
    value: torch.Tensor              # int64 [B,L]: 1, 2, .. over all answers of a row; 0 outside of answers
    number: torch.Tensor             # int64 [B,L]: 1, 2, .. in its answer; 0 outside
    values_max: int                  # largest of each; kept, as asking a GPU would wait for it
    number_max: int

    def to(self, device, **options):
        return Values(self.value.to(device, **options), self.number.to(device, **options), self.values_max, self.number_max)


def values_of(ids, tokenizer):
    """ids int64 [B,L] -> Values. `<q>` and `<doc>` end an answer."""
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    none = torch.full_like(at, -1)
    begun = torch.where(ids == tokenizer.answer, at, none).cummax(1).values
    ended = torch.where((ids == tokenizer.question) | (ids == tokenizer.document), at, none).cummax(1).values
    inside = begun > ended
    begins = (ids == tokenizer.answer) | inside & (ids == tokenizer.line_end)
    count = begins.cumsum(1)
    number = (count - count.gather(1, begun.clamp(min=0)) + 1) * inside
    value = count * inside
    return Values(value, number, int(value.max()), int(number.max()))


@torch.no_grad()
def told(scores, index, chunks, values, weigh):
    """scores [B,L,k] of the chunks chosen, index [B,L,k] in [0, chunks) -> bool [B,L,chunks]: told by an earlier value of the answer.
    weigh(scores, told [B,L,k]) -> weights. The chunk that a value was read from is that with most weight over its
    tokens; which of equal ones is not settled here (the specification: the newest)."""
    B, L, k = index.shape
    if values.number_max < 2:
        return torch.zeros(B, L, chunks, dtype=torch.bool, device=index.device)
    before = torch.zeros(B, values.values_max + 2, chunks, dtype=torch.bool, device=index.device)     # told before each value
    number = torch.zeros(before.shape[:2], dtype=torch.long, device=index.device).scatter_reduce(1, values.value, values.number, 'amax')
    at = (values.value.unsqueeze(-1) * chunks + index).flatten(1)                                     # in a row of before
    for n in range(1, values.number_max):
        weights = weigh(scores, before.flatten(1).gather(1, at).view(B, L, k))
        weights = weights.float() * (values.number == n).unsqueeze(-1)
        total = torch.zeros(before.shape, device=index.device).flatten(1).scatter_add(1, at, weights.flatten(1)).view(before.shape)
        most, best = total.max(-1)
        now = before | F.one_hot(best, chunks).bool() & (most > 0).unsqueeze(-1)
        goes_on = (number[:, :-1] == n) & (number[:, 1:] == n + 1)
        before[:, 1:] = torch.where(goes_on.unsqueeze(-1), now[:, :-1], before[:, 1:])
    return before.gather(1, values.value.unsqueeze(-1).expand(B, L, chunks))


def renumbered(index):
    """Numbers of chunks of a large memory, [B,L,k] -> the same in [0, L*k), equal where they were equal in a row of B."""
    sorted_index, order = index.flatten(1).sort(1)
    new = F.pad((sorted_index[:, 1:] != sorted_index[:, :-1]).long(), (1, 0)).cumsum(1)
    return torch.zeros_like(new).scatter(1, order, new).view(index.shape)
