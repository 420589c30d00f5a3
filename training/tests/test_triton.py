"""Blocks with kernels of their own give what their plain forms give, with the same gradients. On a GPU by Triton, elsewhere by an emulator."""
import contextlib
import copy
import importlib
import unittest
from unittest import mock

from training.tests.fixtures import needs_torch

NAMES = ('triton_hsa', 'triton_scan')


@contextlib.contextmanager
def kernels():
    """training.model with kernels -> (the module, device)."""
    import torch

    from training import model
    if torch.cuda.is_available():
        yield model, 'cuda'
        return
    from training.tests.triton_emulator import instead_of_triton
    with instead_of_triton():
        emulated = {}
        for name in NAMES:                                       # beside the real ones, if there are any
            spec = importlib.util.find_spec(f'training.{name}')
            emulated[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(emulated[name])
    with mock.patch.multiple(model, **emulated):
        yield model, 'cpu'


def relative(expected, got):
    return ((expected - got).norm() / expected.norm()).item()


@needs_torch
class TritonTest(unittest.TestCase):
    def run_both(self, block, length, part, inputs, kind):
        """`part` of the block, plain and fused, on inputs of a kind: ({name: tensor} of outputs and gradients) of each, in float32."""
        import torch
        fused, found = copy.deepcopy(block), []
        self.assertTrue(fused.fuse(length))
        torch.manual_seed(3)
        given = None
        for one in (block, fused):
            mine = [i.to(kind, copy=True).requires_grad_() if i.is_floating_point() else i for i in inputs]
            for p in one.parameters():
                p.grad = None
            output = getattr(one, part)(*mine)
            given = torch.randn_like(output) if given is None else given
            output.backward(given)
            tensors = {'output': output.detach(), **{f'input {n}': i.grad for n, i in enumerate(mine) if i.is_floating_point()},
                       **{name: p.grad for name, p in one.named_parameters() if p.grad is not None}}
            found.append({name: t.float().clone() for name, t in tensors.items()})
        return found

    def compare(self, block, length, part, inputs, tolerance):
        """In float32, equal within the tolerance (a GPU's products of float32 are TF32: 3e-3); in bfloat16, no further from that than the
        plain form is, but for a tenth: both round."""
        import torch
        plain, fused = self.run_both(block, length, part, inputs, torch.float32)
        for name in plain:
            self.assertEqual(plain[name].shape, fused[name].shape)
            self.assertLess(relative(plain[name], fused[name]), tolerance if inputs[0].is_cpu else 3e-3, name)
        rounded, of_kernels = self.run_both(block, length, part, inputs, torch.bfloat16)
        for name in ('output', 'input 0'):
            self.assertLess(relative(plain[name], of_kernels[name]), 1.1 * relative(plain[name], rounded[name]), name)

    def scan(self, segment):
        import torch

        from training.config import Config
        with kernels() as (model, device):
            torch.manual_seed(1)
            layer = model.Mamba2(Config(d_model=64, expand=2)).to(device)
            with torch.no_grad():
                for p in (layer.D, layer.conv1d_bias):
                    p.normal_()
            segment = segment.to(device)
            projected = torch.randn(*segment.shape, layer.project(torch.zeros(1, 1, 64, device=device)).shape[-1], device=device)
            # Sums of decays reach some -300, of which a difference keeps five digits.
            self.compare(layer, segment.shape[1], 'mix', [projected, segment], 2e-4)

    def test_scan(self):
        import torch
        torch.manual_seed(4)
        segment = (torch.rand(2, 256) < 0.03).long().cumsum(1)
        segment[:, 64:] += 1                                             # one begins with a block
        self.scan(segment)

    def test_rows_of_one_batch_do_not_see_each_other(self):
        import torch
        self.scan(torch.zeros(3, 128, dtype=torch.long))                 # the same segment number on both sides of each border

    def test_sparse_attention(self):
        import torch

        from training.config import Config
        with kernels() as (model, device):
            torch.manual_seed(1)

            class Selecting(model.HSA):                                  # gradients of what is not selected are of no interest
                def selecting(self, q, K, V, weights):
                    return self.attend(q, K, V, weights * selected.to(weights.dtype))
            layer = Selecting(Config()).to(device)
            selected = (torch.rand(2, 64, 5, device=device) < 0.4).float()
            selected[:, 16:32, 2] = 0                                    # a chunk that a whole tile skips
            inputs = [torch.randn(2, 64, 6, 64, device=device), *torch.randn(2, 2, 5 * 64, 64, device=device), torch.rand(2, 64, 5, device=device)]
            self.compare(layer, 64, 'selecting', inputs, 1e-5)

    def test_sizes_that_the_kernels_are_not_written_for_are_left_to_the_plain_form(self):
        from training.config import Config
        with kernels() as (model, _):
            for block, length in ((model.Mamba2(Config()), 37), (model.Mamba2(Config(ssm_state_size=48)), 64), (model.HSA(Config()), 37),
                                  (model.HSA(Config(chunk_size=48)), 64), (model.HSA(Config(n_heads=12)), 64)):
                before = vars(block).copy()
                self.assertFalse(block.fuse(length))
                self.assertEqual(vars(block), before)


if __name__ == '__main__':
    unittest.main()
