"""Blocks with kernels of their own give what their plain forms give, with the same gradients. On a GPU by Triton, elsewhere by an emulator."""
import copy
import importlib
import sys
import unittest

from training.tests.fixtures import needs_torch


def kernels():
    """training.model with kernels -> (the module, device)."""
    import torch
    if not torch.cuda.is_available() and 'triton' not in sys.modules:
        from training.tests import triton_emulator
        triton_emulator.install()
    from training import model
    model.triton_hsa, model.triton_scan = (importlib.import_module(f'training.triton_{name}') for name in ('hsa', 'scan'))
    return model, 'cuda' if torch.cuda.is_available() else 'cpu'


@needs_torch
class TritonTest(unittest.TestCase):
    def compare(self, block, length, part, inputs, tolerance):
        """`part` of the block, plain and fused: outputs and gradients, those of inputs first. A GPU's float32 products are TF32: 1e-3."""
        import torch
        fused, twice = copy.deepcopy(block), [[i.clone().requires_grad_() if i.is_floating_point() else i for i in inputs] for _ in range(2)]
        self.assertTrue(fused.fuse(length))
        plain_output, fused_output = getattr(block, part)(*twice[0]), getattr(fused, part)(*twice[1])
        given = torch.randn_like(plain_output)
        plain_output.backward(given)
        fused_output.backward(given)
        pairs = {'output': (plain_output, fused_output)}
        pairs |= {f'input {n}': (a.grad, b.grad) for n, (a, b) in enumerate(zip(*twice)) if a.is_floating_point()}
        pairs |= {name: (p.grad, q.grad) for (name, p), q in zip(block.named_parameters(), fused.parameters()) if p.grad is not None}
        for name, (expected, got) in pairs.items():
            self.assertEqual(expected.shape, got.shape)
            self.assertLess(((expected - got).norm() / expected.norm()).item(), tolerance if inputs[0].is_cpu else 3e-3, name)

    def test_scan(self):
        import torch

        from training.config import Config
        model, device = kernels()
        torch.manual_seed(1)
        layer = model.Mamba2(Config(d_model=64, expand=2, ssm_head_dim=64, ssm_state_size=32)).to(device)
        with torch.no_grad():
            for p in (layer.D, layer.conv1d_bias):
                p.normal_()
        segment = (torch.rand(2, 256, device=device) < 0.03).long().cumsum(1)
        segment[:, 64:] += 1                                             # one begins with a block
        projected = torch.randn(2, 256, layer.project(torch.zeros(1, 1, 64, device=device)).shape[-1], device=device)
        # Sums of decays reach some -300, of which a difference keeps five digits.
        self.compare(layer, 256, 'mix', [projected, segment], 2e-4)

    def test_scan_in_bfloat16_is_no_further_from_float32_than_the_plain_form(self):
        import torch

        from training.config import Config
        model, device = kernels()
        torch.manual_seed(2)
        layer = model.Mamba2(Config(d_model=64, expand=2, ssm_head_dim=64, ssm_state_size=32)).to(device)
        segment = (torch.rand(2, 256, device=device) < 0.02).long().cumsum(1)
        projected = torch.randn(2, 256, layer.project(torch.zeros(1, 1, 64, device=device)).shape[-1], device=device).bfloat16()
        given = torch.randn(2, 256, layer.inner, device=device).bfloat16()

        def run(layer, kind):
            inputs = projected.to(kind, copy=True).requires_grad_()
            output = layer.mix(inputs, segment)
            output.backward(given.to(kind))
            return output.float(), inputs.grad.float()

        fused = copy.deepcopy(layer)
        self.assertTrue(fused.fuse(256))
        exact, plain, kernel = run(layer, torch.float32), run(layer, torch.bfloat16), run(fused, torch.bfloat16)
        for e, p, k in zip(exact, plain, kernel):
            self.assertLess((k - e).norm().item(), (p - e).norm().item())

    def test_sparse_attention(self):
        import torch

        from training.config import Config
        model, device = kernels()
        torch.manual_seed(1)
        layer = model.HSA(Config(d_model=96, n_heads=6, chunk_size=32)).to(device)
        selected = (torch.rand(2, 64, 5, device=device) < 0.4).float()
        selected[:, 16:32, 2] = 0                                        # a chunk that a whole tile skips

        class Selecting(model.HSA):                                      # gradients of what is not selected are of no interest
            def selecting(self, q, K, V, weights):
                return self.attend(q, K, V, weights * selected)
        layer.__class__ = Selecting
        self.compare(layer, 64, 'selecting', [torch.randn(2, 64, 6, 16, device=device), *torch.randn(2, 2, 160, 16, device=device),
                                              torch.rand(2, 64, 5, device=device)], 1e-5)


if __name__ == '__main__':
    unittest.main()
