"""The state space recurrence over many tokens by mamba_ssm's Triton kernels, at the shapes of Mamba-2 130M.

    python3 ssd_peer.py --mamba FOLDER [--repetitions N] [--json PATH]

FOLDER is a checkout of github.com/state-spaces/mamba. Of it, the combined forward entry runs (softplus of dt, D x, final
states), without the gate and the convolution, as our operation does.
"""
import sys
import types

import torch

from timing import Report, arguments, measure

HEADS, WIDTH, STATE, TOKENS = 24, 64, 128, 16384


def combined_entry(folder):
    """mamba_chunk_scan_combined, without the package's own imports (they need its compiled extension)."""
    for name in ('mamba_ssm', 'mamba_ssm.ops', 'mamba_ssm.ops.triton', 'mamba_ssm.utils'):
        package = types.ModuleType(name)
        package.__path__ = [folder + '/' + name.replace('.', '/')]
        sys.modules[name] = package
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    return mamba_chunk_scan_combined


def recurrence(x, dt, A, B, C, D, dt_bias):
    """One token at a time in float64: x [b, l, h, p], dt [b, l, h], A, D, dt_bias [h], B and C [b, l, 1, n]."""
    x, dt, A, B, C, D, dt_bias = (t.double() for t in (x, dt, A, B, C, D, dt_bias))
    dt = torch.nn.functional.softplus(dt + dt_bias)
    state, out = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1]), []
    for t in range(x.shape[1]):
        state = (state * (A * dt[:, t]).exp()[..., None, None]
                 + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None])
        out.append((state * C[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(out, 1)


def main():
    parser = arguments(__doc__)
    parser.add_argument('--mamba', required=True, help='checkout of mamba_ssm')
    args = parser.parse_args()
    scan = combined_entry(args.mamba)
    torch.manual_seed(1)
    report = Report(args)
    A = -torch.rand(HEADS, device='cuda') * 15 - 1
    D, dt_bias = torch.randn(HEADS, device='cuda'), torch.randn(HEADS, device='cuda') - 4

    def inputs(batch, tokens):
        x = torch.randn(batch, tokens, HEADS, WIDTH, device='cuda').bfloat16()
        dt = torch.randn(batch, tokens, HEADS, device='cuda').bfloat16()
        B, C = (torch.randn(batch, tokens, 1, STATE, device='cuda').bfloat16() for _ in 'BC')
        return x, dt, A, B, C

    def run(values, block):
        return scan(*values, chunk_size=block, D=D, dt_bias=dt_bias, dt_softplus=True, return_final_states=True)[0]

    with torch.inference_mode():
        for batch in (1, 4):
            values = inputs(batch, TOKENS // batch)
            few = tuple(t[:, :512] if t.ndim > 1 else t for t in values)
            wanted = recurrence(*few, D, dt_bias)
            for block in (64, 128, 256):
                error = ((run(few, block).double() - wanted).norm() / wanted.norm()).item()
                times = measure(lambda: run(values, block), args.repetitions)
                report.add(f'mamba_ssm Triton SSD, {batch} x {TOKENS // batch} tokens, blocks of {block}', times,
                           tokens_per_s=TOKENS / times[0] * 1e3, error=error)
    report.write()


if __name__ == '__main__':
    main()
