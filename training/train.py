"""Training. Stops after --seconds of training in all, or at SIGTERM, always with a checkpoint; the same command goes on.

Usage: python3 -m training.train PREPARED CHECKPOINT --seconds 1080 [--rows 24] [--workers 14]
       torchrun --nproc-per-node 2 -m training.train ...      (several GPUs: each draws its own batches)
The learning rate falls with the share of --seconds that has passed, so a run that is continued elsewhere ends as planned.
"""
import argparse
import contextlib
import json
import math
import os
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.distributed as distributed

from training import bundle, checkpoint
from training.batches import Batches, loader
from training.config import Config, read_config
from training.losses import LossWeights, batch_loss
from training.model import Ramba
from training.optimizer import Optimizer
from training.rounding import Rounded
from training.step_profile import StepProfile
from training.tokenizer import Tokenizer

CALIBRATION_STEPS = 400         # chunks are first told apart, then their scores are moved to the right side of zero
UNTIMED_STEPS = 10              # compilation happens in these
NEW_HEAD_WEIGHT = -0.25         # of heads that are added to a bundle's second look
AGREE_EVERY = 10                # steps between looks at the clock, which all processes must share


class Gathered(torch.autograd.Function):
    """Rows of all processes [count*K,R]. Each process's loss sends its gradient back to whoever made the row: without it,
    landmarks would feel the pull of their own questions but not the push of the others', and questions and landmarks collapse."""

    @staticmethod
    def forward(context, mine, count):
        context.rows = len(mine)
        parts = [torch.empty_like(mine) for _ in range(count)]
        distributed.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        at = distributed.get_rank() * context.rows
        return gradient[at:at + context.rows], None


class Peers:
    """The other processes of a torchrun; alone without one."""

    def __init__(self):
        self.rank, self.count = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'
        if torch.cuda.is_available():
            torch.cuda.set_device(self.device)
        if self.count > 1:
            distributed.init_process_group('nccl' if torch.cuda.is_available() else 'gloo')

    def average_gradients(self, parameters):
        gradients = [p.grad for p in parameters]
        flat = torch.cat([g.view(-1) for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(part.view_as(g))

    def landmarks(self, mine):
        """mine [K,R] -> the landmarks of the other processes: more negatives, with gradient (see Gathered)."""
        gathered = Gathered.apply(mine, self.count)
        return torch.cat([part for rank, part in enumerate(gathered.split(len(mine))) if rank != self.rank])

    def agree(self, value):
        """The first process's number, in all."""
        if self.count == 1:
            return value
        tensor = torch.tensor([float(value)], device=self.device, dtype=torch.float64)
        distributed.broadcast(tensor, 0)
        return tensor.item()


def rate_factor(step, share, warmup_steps):
    """Warm-up, then half a cosine down to a fiftieth. share: how much of the training time has passed, in [0, 1]."""
    return min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def with_more_heads(weights, model):
    """The weights of a bundle for a model with more heads of the second look. The new ones begin negative: with positive ones alone
    a chunk whose value has just been told cannot be put below the others of a list by what its tokens say (NOTES.md, sixth session)."""
    name = 'look.head_weight'
    if name in weights and model.look and len(weights[name]) < model.c.look_heads:
        weights = dict(weights)
        own, count = model.state_dict(), len(weights[name])
        weights[name] = torch.cat([weights[name], torch.full_like(own[name][count:].cpu(), NEW_HEAD_WEIGHT)])
        rows = 'look.q_proj.weight'
        weights[rows] = torch.cat([weights[rows], own[rows][len(weights[rows]):].cpu()])
    return weights


def train(args, config):
    peers = Peers()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision('high')
    model = Ramba(config).to(peers.device)
    optimizer = Optimizer(model, args.matrix_rate, args.other_rate)
    step, spent = 0, 0.0
    if checkpoint.find(args.checkpoint):
        step, spent = checkpoint.load(args.checkpoint, model, optimizer)
    elif args.initial:
        if (Path(args.initial) / 'tokenizer.model').read_bytes() != (Path(args.prepared) / 'tokenizer.model').read_bytes():
            raise SystemExit(f'{args.initial} and {args.prepared} have different tokenizers: prepare the text with that of the bundle')
        missing, unexpected = model.load_state_dict(with_more_heads(bundle.load(args.initial)[0].state_dict(), model), strict=False)
        if unexpected or any(not name.startswith('look.') for name in missing):
            raise SystemExit(f'{args.initial}: missing {missing}, not known {unexpected}')
        spent = args.spent
    if peers.rank == 0:
        print(f'{sum(p.numel() for p in model.parameters())} parameters, from step {step}, {peers.count} processes', flush=True)
    parameters, rounded = list(model.parameters()), Rounded(model)
    if torch.cuda.is_available():
        model.compile_blocks(math.gcd(args.row_tokens, args.reader_tokens), args.reader_tokens, not args.plain)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    batches = iter(loader(Batches(args.prepared, config, args.rows, f'{args.seed}/{step}/{round(spent)}/{peers.rank}', args.reader_tokens, args.row_tokens), args.workers))
    first_step, started, saved, logged, weights = step, None, time.time(), [], LossWeights(strangers=args.strangers)
    profile = StepProfile(args.profile if peers.rank == 0 else None)
    while True:
        if (step - first_step) % AGREE_EVERY == 0:
            now = peers.agree(spent + (time.time() - started if started else 0.0))
            if now >= args.seconds or peers.agree(bool(stopping)):
                break
        profile.step(step - first_step)
        batch = {k: v.to(peers.device, non_blocking=True) for k, v in next(batches).items()}
        weights.calibration = 1.0 if args.initial else min(1.0, step / CALIBRATION_STEPS)
        with rounded if now >= (1 - args.rounded_share) * args.seconds else contextlib.nullcontext():
            with torch.autocast(peers.device.split(':')[0], torch.bfloat16, enabled=torch.cuda.is_available()):
                loss, figures = batch_loss(model, batch, weights, peers.landmarks if peers.count > 1 else None)
            for p in parameters:
                p.grad = None
            loss.backward()
        if peers.count > 1:
            peers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(rate_factor(step - first_step, now / args.seconds, args.warmup_steps))
        step += 1
        logged.append(figures)
        if step - first_step == UNTIMED_STEPS:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.time()
        if step % args.log_every == 0 and peers.rank == 0:
            report(logged, step, spent, started, (step - first_step - UNTIMED_STEPS) * args.rows * args.row_tokens * peers.count, model)
            logged = []
        if peers.rank == 0 and time.time() - saved > args.save_every:
            checkpoint.save(args.checkpoint, model, optimizer, step, now)
            saved = time.time()
    if peers.rank == 0:
        checkpoint.save(args.checkpoint, model, optimizer, step, now)
        print(f'saved at step {step} after {now:.0f} s of training', flush=True)
    if peers.count > 1:
        distributed.destroy_process_group()


def report(logged, step, spent, started, tokens, model):
    """One line: means since the last line, tokens a second over this run (all processes)."""
    means = {k: torch.stack([f[k].float() for f in logged]).nanmean().item() for k in logged[0]}
    seconds = time.time() - started if started else 0.0
    print(json.dumps({'step': step, 'seconds': round(spent + seconds), 'tokens_per_second': round(tokens / max(seconds, 1e-9)) if started else 0,
                      **{k: round(v, 4) for k, v in means.items()}, 'scale': round(model.retrieval_log_scale.exp().item(), 2)}), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('prepared')
    parser.add_argument('checkpoint')
    parser.add_argument('--seconds', type=float, required=True, help='of training in all, over all runs')
    parser.add_argument('--initial', help='bundle whose weights and sizes to begin with, for a new text or new tasks')
    parser.add_argument('--spent', type=float, default=0.0, help='seconds of this plan that the initial bundle has had already')
    parser.add_argument('--rows', type=int, default=24, help='rows of a batch, for each process')
    parser.add_argument('--row-tokens', type=int, default=4096)
    parser.add_argument('--reader-tokens', type=int, default=1024)
    parser.add_argument('--workers', type=int, default=14)
    parser.add_argument('--warmup-steps', type=int, default=150)
    parser.add_argument('--strangers', type=int, default=32, help='chunks of other rows that each reader sees among its own; even')
    parser.add_argument('--matrix-rate', type=float, default=0.012, help='peak learning rate of Muon')
    parser.add_argument('--other-rate', type=float, default=1.2e-3, help='peak learning rate of AdamW')
    parser.add_argument('--rounded-share', type=float, default=0.25, help='of the time, its end: training on weights rounded as in the bundle')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--plain', action='store_true', help='on a GPU: without the kernels of triton_scan and triton_hsa')
    parser.add_argument('--log-every', type=int, default=50)
    parser.add_argument('--profile', help='file for the operations of five steps, longest first')
    parser.add_argument('--save-every', type=float, default=120, help='seconds')
    for f in fields(Config):
        if f.name != 'vocab_size':
            parser.add_argument('--' + f.name.replace('_', '-'), type=type(f.default), help=f'{f.default}, or as the initial bundle has it')
    args = parser.parse_args()
    vocabulary = Tokenizer(f'{args.prepared}/tokenizer.model').vocab_size
    given = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name, None) is not None}
    sizes = Config(vocab_size=vocabulary, **given)
    if args.initial:      # what the encoder sees beside a chunk, the second look and other weights may be added to a bundle without them
        added = ('encoder_halo', 'look_heads', 'newest_margin', 'told_penalty')
        sizes = replace(read_config(args.initial), **{name: value for name, value in given.items() if name in added})
    train(args, sizes)
