"""What training minimises.

Text and answers: cross-entropy of the next token. Retrieval: at the `<a>` token, and at each later answer token, the chunk
that holds the answer must score highest among the chunks of *all* rows of the batch (in-batch negatives), and scores are
calibrated around zero, where the weights have their null option (with stick-breaking a wrong newer chunk above zero even takes the
weight of the right one): in a memory of millions of chunks there is always another. So gold chunks are pushed above zero and the sum of exp(score) over all others below one.

A batch has a few thousand chunks, a memory millions: `crowd` says how many like it each negative stands for."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.rows import FIRST, GOLD, IGNORED, KINDS, SWITCH


@dataclass
class LossWeights:
    text: float = 0.5
    answer: float = 1.0
    retrieval: float = 0.5       # at <a>
    look: float = 0.5            # the same after the second look
    later: float = 0.25          # at later answer tokens
    switch: float = 0.25         # where an answer goes on from another chunk
    unrelated: float = 0.25      # plain text: its own document against the chunks of other rows
    crowd: float = 8.0           # chunks of a large memory for which each negative stands
    calibration: float = 1.0     # of the terms around zero beside the contrast; training raises it from 0 at the beginning
    first_calibration: float = 0.3   # of those of landmark scores, where a second look follows: weights come from its scores
    strangers: int = 0           # chunks of other rows that a reader sees among its own


def retrieval_terms(scores, gold, own_row, own_row_only, calibration=1.0, crowd=1.0):
    """Loss of each query and whether its best chunk is right.
    scores [n, K] of n queries against all K chunks; gold [n, C] uint8 of the own row's chunks; own_row [n] where those
    begin in K; own_row_only [n] bool. -> (loss [n], hit [n])"""
    n, chunks = gold.shape
    columns = own_row[:, None] + torch.arange(chunks, device=scores.device)
    kind = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    kind.masked_fill_(own_row_only[:, None], IGNORED)
    kind.scatter_(1, columns, gold)
    positive = kind == GOLD
    wanted = positive.any(-1)
    gold_mass = scores.masked_fill(~positive & wanted[:, None], float('-inf')).logsumexp(-1)
    rest_mass = scores.masked_fill(kind != 0, float('-inf')).logsumexp(-1) + calibration * math.log(crowd)
    found = F.softplus(rest_mass - gold_mass) + calibration * F.softplus(-gold_mass)
    loss = torch.where(wanted, found, torch.zeros_like(found)) + calibration * F.softplus(rest_mass)
    best = scores.masked_fill(kind == IGNORED, float('-inf')).argmax(-1, keepdim=True)
    return loss, torch.where(wanted, positive.gather(1, best).squeeze(1), rest_mass < 0)


def batch_loss(model, batch, weights, gather_landmarks=None):
    """Loss of one batch (see batches.collate) and a dict of detached figures for the log.
    gather_landmarks: landmarks [K,R] -> those of the other processes."""
    at, first, switch = batch['query_at'], batch['query_is'] == FIRST, batch['query_is'] == SWITCH
    alone = torch.zeros_like(batch['label'], dtype=torch.bool).view(-1).index_put((at,), batch['own_row_only']).view(batch['label'].shape)
    asking = torch.cat([at, batch['text_at']])                     # plain text, too, meets what looks like it in a large memory
    passes = model(batch['memory'], batch['memory_segment'], batch['reader'], batch['reader_segment'], batch['values'], asking, alone, weights.strangers)
    hidden, queries, landmarks = passes.hidden, passes.queries, passes.landmarks
    judged = batch['label_at']                                     # the rest of the readers is not judged
    logits = model.logits(hidden.flatten(0, 1).index_select(0, judged))
    label, text_weight, answer_weight = (batch[name].view(-1)[judged] for name in ('label', 'text_weight', 'answer_weight'))
    loss = F.cross_entropy(logits.float(), label, reduction='none')
    text = (loss * text_weight).sum() / text_weight.sum().clamp(min=1)
    answer = (loss * answer_weight).sum() / answer_weight.sum().clamp(min=1)
    with torch.autocast(hidden.device.type, enabled=False):
        flat = landmarks.float().reshape(-1, landmarks.shape[-1])
        everyone = torch.cat([flat, gather_landmarks(flat)]) if gather_landmarks else flat
        asked = queries.float().reshape(-1, queries.shape[-1])
        own_row = torch.div(at, queries.shape[1], rounding_mode='floor') * landmarks.shape[1]
        each, hit = retrieval_terms(model.score(asked.index_select(0, at), everyone), batch['gold'], own_row, batch['own_row_only'],
                                    weights.calibration * (weights.first_calibration if model.look else 1.0), weights.crowd)
        if model.look:
            seen = passes.corrected.float().reshape(len(asked), -1).index_select(0, at)
            looked, hit_look = retrieval_terms(seen, batch['gold'], torch.full_like(at, passes.first_own), batch['own_row_only'],
                                               weights.calibration)
            each = each + weights.look / weights.retrieval * looked
        at_a = (each * first).sum() / first.sum().clamp(min=1)
        later = (each * ~first).sum() / (~first).sum().clamp(min=1)
        at_switch = (each * switch).sum() / switch.sum().clamp(min=1)
        unrelated = text_loss(model, asked, everyone, passes, batch, weights.crowd)
    total = (weights.text * text + weights.answer * answer + weights.retrieval * at_a + weights.later * later + weights.switch * at_switch
             + weights.calibration * weights.unrelated * unrelated)
    exact = answer_weight >= 1
    figures = {'text': text, 'answer': share(loss, exact), 'correct': share(logits.argmax(-1) == label, exact), 'retrieval': at_a,
               'later': later, 'switch': at_switch, 'unrelated': unrelated, 'hit': share(hit, first), 'hit_switch': share(hit, switch)}
    if model.look:
        figures |= {'looked': share(looked, first), 'hit_look': share(hit_look, first), 'hit_look_later': share(hit_look, ~first)}
    for number, name in enumerate(KINDS):
        if name:
            figures[f'hit_{name}'] = share(hit, first & (batch['query_kind'] == number))
    return total, {k: v.detach() for k, v in figures.items()}


def share(values, mask):
    """Mean of `values` where `mask` is; NaN where it is nowhere. (Indexing with a mask would wait for the GPU.)"""
    return (values * mask).sum() / mask.sum()


def text_loss(model, queries, landmarks, passes, batch, crowd):
    """Plain text must find its own document before anything in other rows, and nothing there above zero: by landmarks (flat [K,R], those
    of the own rows first), and after the second look, whose scores make the weights, among the strangers that its reader sees."""
    at, (_, length, _), chunks = batch['text_at'], passes.queries.shape, passes.landmarks.shape[1]
    if len(at) == 0:
        return queries.sum() * 0
    row = torch.div(at, length, rounding_mode='floor')
    document = batch['memory_segment'][:, ::model.c.chunk_size]                     # [B,C]
    related = (document == document[:, -1:])[row]                                    # [n,C]: the document that the reader goes on with
    loss = against_others(model.score(queries[at], landmarks), row * chunks, related, crowd)
    if model.look:
        loss = loss + against_others(passes.corrected.float().flatten(0, 1)[at], torch.full_like(at, passes.first_own), related, 1.0)
    return loss.mean()


def against_others(scores, first_own, related, crowd):
    """scores [n,K]; related [n,C] bool of the own row's chunks, which begin at first_own [n] -> loss [n]. Own chunks that are not
    related are left alone."""
    columns = first_own[:, None] + torch.arange(related.shape[1], device=scores.device)
    own = torch.zeros_like(scores, dtype=torch.bool).scatter(1, columns, True)
    mine = scores.gather(1, columns).masked_fill(~related, float('-inf')).logsumexp(-1)
    if own.shape[1] == related.shape[1]:                                             # no one else is there
        return mine * 0
    others = scores.masked_fill(own, float('-inf')).logsumexp(-1) + math.log(crowd)
    return F.softplus(others - mine) + F.softplus(others)
