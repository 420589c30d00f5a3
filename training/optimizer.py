"""Muon for matrices, AdamW for the rest. Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024)."""
import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(gradients):
    """gradients [n, rows, columns] -> nearest semi-orthogonal matrices, about; five iterations in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = gradients.bfloat16() if gradients.is_cuda else gradients
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(-1, -2)


class Muon:
    """Matrices of one shape are stepped together. `momentum` is its whole state."""

    def __init__(self, parameters, weight_decay=0.05, momentum=0.95):
        self.groups, self.weight_decay, self.beta = {}, weight_decay, momentum
        for p in parameters:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.momentum = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}
        self.orthogonalise = torch.compile(orthogonalise) if hasattr(torch, 'compile') and torch.cuda.is_available() else orthogonalise

    @torch.no_grad()
    def step(self, rate):
        for shape, parameters in self.groups.items():
            gradients = torch.stack([p.grad for p in parameters]).float()
            momentum = self.momentum[shape].mul_(self.beta).add_(gradients)
            updates = self.orthogonalise(gradients.add(momentum, alpha=self.beta)).float()
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for i, p in enumerate(parameters):
                p.mul_(1 - rate * self.weight_decay).add_(updates[i], alpha=-rate * scale)


class Optimizer:
    """Both optimizers under one learning-rate factor in [0, 1]."""

    def __init__(self, model, matrix_rate=0.02, other_rate=1.5e-3):
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and 'embedding' not in n and 'conv1d' not in n]
        chosen = {id(p) for p in matrices}
        wide = [p for n, p in named if id(p) not in chosen and p.ndim >= 2]
        narrow = [p for n, p in named if p.ndim < 2]
        self.muon, self.matrix_rate, self.other_rate = Muon(matrices), matrix_rate, other_rate
        self.adam = torch.optim.AdamW([{'params': wide, 'weight_decay': 0.01}, {'params': narrow, 'weight_decay': 0.0}],
                                      lr=other_rate, betas=(0.9, 0.95), **({'fused': True} if torch.cuda.is_available() else {}))

    def step(self, factor):
        for group in self.adam.param_groups:
            group['lr'] = self.other_rate * factor
        self.adam.step()
        self.muon.step(self.matrix_rate * factor)

    def state(self):
        return {'adam': self.adam.state_dict(), 'muon': {str(shape): m for shape, m in self.muon.momentum.items()}}

    def load(self, state):
        self.adam.load_state_dict(state['adam'])
        for shape, momentum in self.muon.momentum.items():
            momentum.copy_(state['muon'][str(shape)])
