"""Training on the weights that the bundle will have: forward and backward on rows rounded to int8, steps on the exact ones
(straight-through estimation, arXiv 1308.3432)."""
import torch


class Int8Rows:
    """`with Int8Rows(model):` the matrices that a bundle stores as int8 rows (reference.quantize) hold rounded values."""

    def __init__(self, model):
        self.matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and 'conv1d' not in name]

    @torch.no_grad()
    def __enter__(self):
        self.exact = [p.detach().clone() for p in self.matrices]
        for p in self.matrices:
            scale = p.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            p.copy_((p / scale).round().clamp(-127, 127) * scale)

    @torch.no_grad()
    def __exit__(self, *_):
        for p, exact in zip(self.matrices, self.exact):
            p.copy_(exact)
