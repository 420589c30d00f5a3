"""Checkpoints: a folder of parts small enough to be copied one by one.

  weights-NN.pt   {name: tensor}
  optimizer.pt    optimizer state (absent in a compact checkpoint, which holds bfloat16 weights alone)
  progress.json   config, step, seconds trained
A compact checkpoint is a quarter of the size; training that continues from it warms its optimizer up again."""
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from training.config import Config

PART_BYTES = 14_000_000


def save(folder, model, optimizer, step, seconds, compact=False):
    """Writes a checkpoint beside the one before, then puts it in its place: whenever it is cut off, one of them is whole (find)."""
    place, folder = Path(folder), Path(f'{folder}.new')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {n: (t.bfloat16() if compact and t.ndim >= 2 else t).detach().cpu().clone() for n, t in model.state_dict().items()}
    for number, part in enumerate(parts(weights)):
        torch.save(part, folder / f'weights-{number:02}.pt')
    if not compact:
        torch.save(optimizer.state(), folder / 'optimizer.pt')
    (folder / 'progress.json').write_text(json.dumps({'config': asdict(model.c), 'step': step, 'seconds': seconds}))
    before = Path(f'{place}.before')
    shutil.rmtree(before, ignore_errors=True)
    if place.exists():
        place.rename(before)
    folder.rename(place)
    shutil.rmtree(before, ignore_errors=True)


def find(folder):
    """Whether there is a checkpoint, after one that was cut off the one before it is put back."""
    before = Path(f'{folder}.before')
    if not Path(folder).exists() and before.exists():
        before.rename(folder)
    return (Path(folder) / 'progress.json').exists()


def parts(weights):
    """Splits {name: tensor} into dicts of at most PART_BYTES (a larger tensor stands alone)."""
    result, size = [{}], 0
    for name, tensor in weights.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if size + bytes_ > PART_BYTES and result[-1]:
            result.append({})
            size = 0
        result[-1][name] = tensor
        size += bytes_
    return result


def read_config(folder):
    return Config(**json.loads((Path(folder) / 'progress.json').read_text())['config'])


def load_weights(folder):
    """{name: float32 tensor}."""
    weights = {}
    for part in sorted(Path(folder).glob('weights-*.pt')):
        weights.update(torch.load(part, map_location='cpu'))
    return {n: t.float() for n, t in weights.items()}


def load(folder, model, optimizer):
    """Restores model and, where it was kept, optimizer; returns (step, seconds)."""
    model.load_state_dict(load_weights(folder))
    kept = Path(folder) / 'optimizer.pt'
    if kept.exists():
        optimizer.load(torch.load(kept, map_location='cpu'))
    progress = json.loads((Path(folder) / 'progress.json').read_text())
    return progress['step'], progress['seconds']
