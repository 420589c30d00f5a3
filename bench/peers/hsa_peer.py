"""Hierarchical sparse attention in PyTorch, beside full causal attention; and, where a checkout of its authors is at
hand, their Triton kernel.

    python3 hsa_peer.py [--authors FOLDER] [--batch 8] [--tokens 16384] [--repetitions N] [--json PATH]

FOLDER holds `ops/hsa_triton.py` of github.com/RamstorageAI/long-context-modeling (needs einops and pytest to import).
Shapes: q [batch, tokens, heads, 64], K and V [batch, chunks, 64, 64] (one head of them), 8 chunks a token.
"""
import sys

import torch
import torch.nn.functional as F

from timing import Report, arguments, measure

HEADS, WIDTH, CHUNK, READ = 16, 64, 64, 8


def hsa(q, K, V, index, weights):
    """q [n, h, D]; K, V [chunks, S, D]; index, weights [n, k] -> [n, h, D]."""
    scores = torch.einsum('nhd,nksd->nhks', q, K[index]) * q.shape[-1] ** -0.5
    p = (torch.softmax(scores.float(), -1) * weights[:, None, :, None]).to(q.dtype)
    return torch.einsum('nhks,nksd->nhd', p, V[index])


def hsa_in_slices(function, q, K, V, index, weights, rows=16384):
    """The gathered K and V of all tokens would not fit: slices of `rows` tokens."""
    return torch.cat([function(*(t[i:i + rows] if t is not K and t is not V else t
                                 for t in (q, K, V, index, weights)))
                      for i in range(0, len(q), rows)])


def choose(pattern, batch, tokens, chunks):
    """Chunks of each token, [batch, tokens, 8], all different."""
    if pattern == 'shared':  # 64 neighbours read the same chunks
        picked = torch.rand(batch, tokens // 64, chunks, device='cuda').topk(READ, -1).indices
        return picked.repeat_interleave(64, 1)
    noise = torch.rand(batch, tokens, chunks, device='cuda')
    if pattern == 'past':  # whole chunks before the token's own, at least 8 to choose from
        last = (torch.arange(tokens, device='cuda') // CHUNK).clamp(min=READ)[:, None]
        noise = noise.masked_fill(torch.arange(chunks, device='cuda')[None] >= last, -1.0)
    return noise.topk(READ, -1).indices


def authors_kernel(module, q, K, V, index, weights, block):
    """Their forward kernel alone (their Python entry also looks for NaNs, and waits). Tokens of a block share chunks."""
    batch, tokens, heads, width = q.shape
    k, v = (t.reshape(batch, -1, 1, width) for t in (K, V))
    index, weights = (t[:, ::block].unsqueeze(2).contiguous() for t in (index, weights))
    rows = min(block, 16)
    out = torch.empty_like(q)
    log_sums = torch.empty(batch, READ, tokens, heads, device=q.device, dtype=torch.float32)
    strides = [s for t in (q, k, v, out, weights, index, log_sums) for s in t.stride()]

    def run():
        module._attn_fwd[(tokens // rows, batch, 1)](
            q, k, v, weights, index, width ** -0.5, 0.0, log_sums, out, *strides, tokens, k.shape[1], heads, READ, width,
            rows, CHUNK, block)
        return out
    return run


def main():
    parser = arguments(__doc__)
    parser.add_argument('--authors', help='checkout of the authors\' repository')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--tokens', type=int, default=16384)
    args = parser.parse_args()
    module = None
    if args.authors:
        sys.path.insert(0, args.authors)
        import ops.hsa_triton as module
    torch.manual_seed(1)
    batch, tokens, chunks = args.batch, args.tokens, max(args.tokens // CHUNK, READ)
    report = Report(args)
    compiled = torch.compile(hsa, dynamic=False)
    with torch.inference_mode():
        q = torch.randn(batch, tokens, HEADS, WIDTH, device='cuda').bfloat16()
        K, V = (torch.randn(batch, chunks, CHUNK, WIDTH, device='cuda').bfloat16() for _ in 'KV')
        operations = 4 * batch * tokens * HEADS * WIDTH * CHUNK * READ
        for pattern in ('random', 'past', 'shared'):
            index = choose(pattern, batch, tokens, chunks)
            weights = torch.full(index.shape, 0.125, device='cuda')
            shape = f'{batch} x {tokens}, {HEADS} heads, {pattern} chunks'
            first = torch.arange(batch, device='cuda')[:, None, None] * chunks
            flat = (q.flatten(0, 1), K.flatten(0, 1), V.flatten(0, 1), (index + first).flatten(0, 1), weights.flatten(0, 1))
            for name, function in (('eager', hsa), ('compiled', compiled)):
                times = measure(lambda: hsa_in_slices(function, *flat), max(5, args.repetitions // 4))
                report.add(f'torch {name} hsa, {shape}', times, tflops=operations / times[0] / 1e9)
            if module:
                wanted = hsa_in_slices(hsa, *flat).view_as(q).float()
                for block in (1, 16, 64) if pattern == 'shared' else (1,):
                    run = authors_kernel(module, q, K, V, index, weights, block)
                    error = ((run().float() - wanted).norm() / wanted.norm()).item()
                    times = measure(run, args.repetitions)
                    report.add(f'authors\' kernel, blocks of {block}, {shape}', times, tflops=operations / times[0] / 1e9,
                               error=error)
        heads_first = q.transpose(1, 2)
        kv = [t.reshape(batch, 1, -1, WIDTH).expand(-1, HEADS, -1, -1) for t in (K, V)]
        times = measure(lambda: F.scaled_dot_product_attention(heads_first, *kv, is_causal=True), args.repetitions)
        report.add(f'torch full causal attention, {batch} x {tokens}, {HEADS} heads', times)
    report.write()


if __name__ == '__main__':
    main()
