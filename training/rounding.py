"""Training on the weights that the bundle will have: forward and backward on rounded ones, steps on the exact ones
(straight-through estimation, arXiv 1308.3432)."""
import torch

from training import reference


class Rounded:
    """`with rounded:` the model has the weights that a bundle gives back (reference.quantize)."""

    def __init__(self, model):
        self.parameters = dict(model.named_parameters())

    @torch.no_grad()
    def __enter__(self):
        self.exact = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, stored in reference.dequantize(reference.quantize(self.exact)).items():
            self.parameters[name].copy_(stored)

    @torch.no_grad()
    def __exit__(self, *_):
        for name, exact in self.exact.items():
            self.parameters[name].copy_(exact)
