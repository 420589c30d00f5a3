"""The landmark scan as PyTorch does it: all scores by one matrix product, then topk.

    python3 landmark_topk_peer.py [--rows 1000000] [--dim 256] [--best 8] [--repetitions N] [--json PATH]
"""
import torch

from timing import Report, arguments, measure


def main():
    parser = arguments(__doc__)
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--dim', type=int, default=256)
    parser.add_argument('--best', type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(1)
    landmarks = torch.randn(args.rows, args.dim, device='cuda').bfloat16()
    report = Report(args)

    def scan(q):
        return torch.topk(q @ landmarks.T, args.best)

    compiled = torch.compile(scan, dynamic=False)
    with torch.inference_mode():
        for queries in (1, 4, 8, 16, 32, 64, 128, 256):
            q = torch.randn(queries, args.dim, device='cuda').bfloat16()
            shape = f'{args.rows} x {args.dim} bf16 top-{args.best}, {queries} queries'
            gb = landmarks.nbytes / 1e9
            for name, function in (('eager', scan), ('compiled', compiled)):
                times = measure(lambda: function(q), args.repetitions)
                report.add(f'torch {name}, {shape}', times, gb_per_s=gb / times[0] * 1e3)
    report.write()


if __name__ == '__main__':
    main()
