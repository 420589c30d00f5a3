"""Ingest as plain PyTorch does it: the network's lower half and chunk encoder in bf16, torch.compile'd.

    python3 network_peer.py --model FOLDER [--segments 32] [--tokens 4096] [--repetitions N] [--json PATH]

The same mathematics as the executable specification (docs/model.md), with the recurrence in blocks of tokens as matrix
products (arXiv 2405.21060, section 6). Weights: a bundle's model.safetensors, int8 with a scale a row, made bf16. Prints
how far its float32 form is from the recurrence step by step, then times bf16. Attention heads share one K/V head.
"""
import json
import os
import struct

import torch
import torch.nn.functional as F

from timing import Report, arguments, measure


def load(folder):
    """config, and weights as float32 on the device."""
    kinds = {'F32': torch.float32, 'BF16': torch.bfloat16, 'I8': torch.int8, 'I32': torch.int32, 'I64': torch.int64}
    with open(os.path.join(folder, 'config.json')) as f:
        config = json.load(f)
    with open(os.path.join(folder, 'model.safetensors'), 'rb') as f:
        header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
        data = bytearray(f.read())
    raw = {}
    for name, entry in header.items():
        if name != '__metadata__':
            begin, end = entry['data_offsets']
            flat = torch.frombuffer(memoryview(data)[begin:end], dtype=kinds[entry['dtype']]).clone()
            raw[name] = flat.reshape(entry['shape']).cuda()
    return config, {name: t.float() * raw[name + '.scale'][:, None] if name + '.scale' in raw else t.float()
                    for name, t in raw.items() if not name.endswith('.scale')}


def rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def ssd(x, dt, decay, B, C, block):
    """x [b, l, h, p], dt and decay = log of the factor [b, l, h], B and C [b, l, n] -> y, from a state of zero."""
    b, l, h, p = x.shape
    blocks, n = l // block, B.shape[-1]
    x = (x * dt[..., None].to(x.dtype)).view(b, blocks, block, h, p)
    B, C = B.reshape(b, blocks, block, n), C.reshape(b, blocks, block, n)
    total = decay.view(b, blocks, block, h).cumsum(2)  # log of the decay since the block's begin
    within = (total[:, :, :, None] - total[:, :, None]).permute(0, 1, 4, 2, 3)  # [b, blocks, h, to, from]
    causal = torch.ones(block, block, dtype=torch.bool, device=x.device).tril()
    factor = torch.exp(within.masked_fill(~causal, float('-inf'))).to(x.dtype)
    y = torch.einsum('bchij,bcij,bcjhp->bcihp', factor, C @ B.transpose(-1, -2), x)
    to_end = torch.exp(total[:, :, -1:] - total).to(x.dtype)
    added = torch.einsum('bcjn,bcjhp->bchnp', B, x * to_end[..., None])
    state, states = torch.zeros_like(added[:, 0]), []
    for c in range(blocks):  # few blocks: the states one after the other
        states.append(state)
        state = state * torch.exp(total[:, c, -1])[..., None, None].to(x.dtype) + added[:, c]
    from_before = torch.einsum('bcin,bchnp->bcihp', C, torch.stack(states, 1))
    return (y + from_before * torch.exp(total)[..., None].to(x.dtype)).reshape(b, l, h, p)


def recurrence(x, dt, decay, B, C, block):
    """The same, a token at a time."""
    state, out = x.new_zeros(x.shape[0], x.shape[2], B.shape[-1], x.shape[3]), []
    for t in range(x.shape[1]):
        state = (state * decay[:, t].exp()[..., None, None]
                 + B[:, t, None, :, None] * (dt[:, t, :, None] * x[:, t])[:, :, None])
        out.append(torch.einsum('bn,bhnp->bhp', C[:, t], state))
    return torch.stack(out, 1)


def mamba(c, w, h, scan):
    """One Mamba-2 layer, h [b, l, d]; w(name) gives its weights."""
    inner, n = c['expand'] * c['d_model'], c['ssm_state_size']
    heads = inner // c['ssm_head_dim']
    z, xbc, dt = F.linear(rms_norm(h, w('norm.weight'), c['norm_eps']), w('in_proj.weight')).split(
        [inner, inner + 2 * n, heads], -1)
    taps, kernel = c['conv_kernel'], w('conv1d_weight')
    past = F.pad(xbc, (0, 0, taps - 1, 0))
    xbc = F.silu(sum(past[:, t:t + h.shape[1]] * kernel[t] for t in range(taps)) + w('conv1d_bias'))
    x, B, C = xbc.split([inner, n, n], -1)
    x = x.reshape(*x.shape[:2], heads, -1)
    dt = F.softplus(dt.float() + w('dt_bias').float())
    y = scan(x, dt, -torch.exp(w('A_log').float()) * dt, B, C, c['ssm_block']) + x * w('D')[:, None]
    y = rms_norm(y.flatten(2) * F.silu(z), w('gate_norm.weight'), c['norm_eps'])
    return h + F.linear(y, w('out_proj.weight'))


def rotate(x, cosine, sine):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def encode_chunks(c, w, h):
    """h [segments, tokens, d] -> K, V [segments * chunks, S, D], landmarks [segments * chunks, R]."""
    eps, head_eps, heads, d = c['norm_eps'], 1e-5, c['n_heads'], c['d_model']
    S, halo = c['chunk_size'], c.get('encoder_halo', 0)
    # A chunk sees `halo` tokens behind it; behind the segment there are rows of zeros, whose norm is zero.
    groups = F.pad(rms_norm(h, w('in_norm.weight'), eps), (0, 0, 0, halo)).unfold(1, S + halo, S)
    groups = groups.transpose(-1, -2).reshape(-1, S + halo, d)
    x = torch.cat([groups, w('cls').expand(groups.shape[0], 1, d)], 1)
    angle = (torch.arange(x.shape[1], device=x.device).float()[:, None]
             * c['rope_base'] ** (-torch.arange(0, d // heads, 2, device=x.device).float() / (d // heads)))
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    for i in range(c['encoder_layers']):
        layer = lambda name, i=i: w(f'layers.{i}.{name}')
        q, k, v = [t.view(*x.shape[:2], heads, -1).transpose(1, 2) for t in
                   F.linear(rms_norm(x, layer('attn_norm.weight'), eps), layer('qkv.weight')).chunk(3, -1)]
        q, k = (rotate(rms_norm(t, layer(f'{name}_norm.weight'), head_eps), cosine, sine) for name, t in (('q', q), ('k', k)))
        x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape), layer('attn_out.weight'))
        gate, up = F.linear(rms_norm(x, layer('mlp_norm.weight'), eps), layer('gate_up.weight')).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, layer('down.weight'))
    x = rms_norm(x, w('norm.weight'), eps)
    return (rms_norm(F.linear(x[:, :S], w('k_proj.weight')), w('k_norm.weight'), head_eps), F.linear(x[:, :S], w('v_proj.weight')),
            rms_norm(F.linear(x[:, -1], w('landmark_proj.weight')), w('landmark_norm.weight'), head_eps))


def ingest(c, weights, ids, scan=ssd):
    """ids [segments, tokens] -> K, V [segments * chunks, S, D], landmarks [.., R]."""
    h = weights['embedding.weight'][ids]
    for i in range(c['n_lower_layers']):
        h = mamba(c, lambda name, i=i: weights[f'lower.{i}.{name}'], h, scan)
    return encode_chunks(c, lambda name: weights['chunk_encoder.' + name], h)


def main():
    parser = arguments(__doc__)
    parser.add_argument('--model', required=True, help='folder of a bundle')
    parser.add_argument('--segments', type=int, default=32)
    parser.add_argument('--tokens', type=int, default=4096)
    args = parser.parse_args()
    c, weights = load(args.model)
    torch.manual_seed(1)
    with torch.inference_mode():
        few = torch.randint(0, c['vocab_size'], (2, 256), device='cuda')
        for name, a, b in zip(('K', 'V', 'landmarks'), ingest(c, weights, few), ingest(c, weights, few, recurrence)):
            error = ((a - b).norm() / b.norm()).item()
            print(f'{name}: blocks differ from the recurrence by {error:.2e}')
            if not error < 1e-3:
                raise SystemExit('the peer does not compute the network')
        half = {name: t.bfloat16() for name, t in weights.items()}
        ids = torch.randint(0, c['vocab_size'], (args.segments, args.tokens), device='cuda')
        compiled = torch.compile(lambda x: ingest(c, half, x), dynamic=False)
        exact = ingest(c, weights, ids[:2])
        for name, a, b in zip(('K', 'V', 'landmarks'), ingest(c, half, ids[:2]), exact):
            print(f'{name}: bf16 differs from float32 by {((a.float() - b).norm() / b.norm()).item():.2e}')
        report = Report(args)
        for name, function in (('eager', lambda x: ingest(c, half, x)), ('compiled', compiled)):
            times = measure(lambda: function(ids), args.repetitions, cold=False)
            report.add(f'torch {name} ingest, {args.segments} x {args.tokens} tokens', times,
                       tokens_per_s=ids.numel() / times[0] * 1e3)
        report.write()


if __name__ == '__main__':
    main()
