"""Hierarchical sparse attention over the chunks of a row on a GPU, forward and backward: tokens skip the chunks that none of them selected.

Source: arXiv 2504.16795, section 3. The plain form, whose results these are, is HSA.attend in model.py; it writes the scores of every head, token and
key, of which a tenth count. Shapes: B rows, L tokens, h heads of D, C chunks of S tokens. A program has TOKENS tokens with all their heads
(HP: h rounded up to a power of two), so that a tile's rows read few chunks; a chunk's softmax is one tile, nothing is kept for the backward pass."""
import torch
import triton
import triton.language as tl

TOKENS = 16


@triton.jit
def shares(query, keys, scale):
    """The softmax of each row of a tile over one chunk's tokens."""
    logits = tl.dot(query, tl.trans(keys)) * scale
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def tile_gradients(query, given, keys, values, w, scale):
    """-> (shares, the gradient of each row's weight, that of its logits) of a tile, `given` being the output's gradient."""
    p = shares(query, keys, scale)
    dp = tl.dot(given, tl.trans(values))
    dw = tl.sum(p * dp, 1)
    return p, dw, p * (dp - dw[:, None]) * (w * scale)[:, None]


@triton.jit
def hsa_forward(q, k, v, weights, o, L, C, scale, h: tl.constexpr, HP: tl.constexpr, T: tl.constexpr, S: tl.constexpr, D: tl.constexpr):
    """o [B,L,h,D] = sum over chunks of weight * softmax(q K^T) V. q [B,L,h,D]; k, v [B,C*S,D]; weights [B,L,C]."""
    row = tl.program_id(1).to(tl.int64)
    r, d, s = tl.arange(0, T * HP), tl.arange(0, D), tl.arange(0, S)
    token, head = row * L + tl.program_id(0) * T + r // HP, r % HP
    at = (token * h + head)[:, None] * D + d[None, :]
    here = (head < h)[:, None]
    query = tl.load(q + at, mask=here, other=0.0)
    out = tl.zeros((T * HP, D), tl.float32)
    for c in range(C):
        w = tl.load(weights + token * C + c)
        if tl.max(w, 0) > 0:
            key = ((row * C + c) * S + s)[:, None] * D + d[None, :]
            p = shares(query, tl.load(k + key), scale) * w[:, None]
            out = tl.dot(p.to(query.dtype), tl.load(v + key), out)
    tl.store(o + at, out, mask=here)


@triton.jit
def hsa_backward_queries(q, k, v, weights, do, dq, dw, L, C, scale, h: tl.constexpr, HP: tl.constexpr, T: tl.constexpr, S: tl.constexpr, D: tl.constexpr):
    """dq [B,L,h,D], and dw [B,L,C] where a weight is not zero (elsewhere it is left as it is)."""
    row = tl.program_id(1).to(tl.int64)
    r, d, s, i = tl.arange(0, T * HP), tl.arange(0, D), tl.arange(0, S), tl.arange(0, T)
    first = row * L + tl.program_id(0) * T
    token, head = first + r // HP, r % HP
    at = (token * h + head)[:, None] * D + d[None, :]
    here = (head < h)[:, None]
    query, given = tl.load(q + at, mask=here, other=0.0), tl.load(do + at, mask=here, other=0.0)
    gradient = tl.zeros((T * HP, D), tl.float32)
    for c in range(C):
        w = tl.load(weights + token * C + c)
        if tl.max(w, 0) > 0:
            key = ((row * C + c) * S + s)[:, None] * D + d[None, :]
            keys = tl.load(k + key)
            _, of_weight, dlogits = tile_gradients(query, given, keys, tl.load(v + key), w, scale)
            tl.store(dw + (first + i) * C + c, tl.sum(tl.reshape(of_weight, (T, HP)), 1))
            gradient = tl.dot(dlogits.to(query.dtype), keys, gradient)
    tl.store(dq + at, gradient, mask=here)


@triton.jit
def hsa_backward_keys(q, k, v, weights, do, dk, dv, L, C, scale, h: tl.constexpr, HP: tl.constexpr, T: tl.constexpr, S: tl.constexpr, D: tl.constexpr):
    """dk, dv [B,C*S,D]: one program a chunk, all tokens one block after the other. weights [B,C,L] here."""
    row, c = tl.program_id(1).to(tl.int64), tl.program_id(0)
    r, d, s = tl.arange(0, T * HP), tl.arange(0, D), tl.arange(0, S)
    key = ((row * C + c) * S + s)[:, None] * D + d[None, :]
    keys, values = tl.load(k + key), tl.load(v + key)
    here = (r % HP < h)[:, None]
    of_keys, of_values = tl.zeros((S, D), tl.float32), tl.zeros((S, D), tl.float32)
    for begin in range(0, L, T):
        w = tl.load(weights + (row * C + c) * L + begin + r // HP)
        if tl.max(w, 0) > 0:
            at = ((row * L + begin + r // HP) * h + r % HP)[:, None] * D + d[None, :]
            query, given = tl.load(q + at, mask=here, other=0.0), tl.load(do + at, mask=here, other=0.0)
            p, _, dlogits = tile_gradients(query, given, keys, values, w, scale)
            of_values = tl.dot(tl.trans((p * w[:, None]).to(query.dtype)), given, of_values)
            of_keys = tl.dot(tl.trans(dlogits.to(query.dtype)), query, of_keys)
    tl.store(dk + key, of_keys)
    tl.store(dv + key, of_values)


class SparseAttention(torch.autograd.Function):
    """q [B,L,h,D], K, V [B,C*S,D], weights [B,L,C] float32, zero where a chunk is not selected -> [B,L,h,D] of q's type."""

    @staticmethod
    def forward(context, q, K, V, weights):
        q, K, V, weights = q.contiguous(), K.to(q.dtype).contiguous(), V.to(q.dtype).contiguous(), weights.float().contiguous()
        o = torch.empty_like(q)
        numbers, constants = sizes_of(q, K, weights)
        hsa_forward[tiles(q)](q, K, V, weights, o, *numbers, **constants, num_warps=8)
        context.save_for_backward(q, K, V, weights)
        return o

    @staticmethod
    def backward(context, do):
        q, K, V, weights = context.saved_tensors
        do = do.to(q.dtype).contiguous()
        dq, dw, dK, dV = torch.empty_like(q), torch.zeros_like(weights), torch.empty_like(K), torch.empty_like(V)
        numbers, constants = sizes_of(q, K, weights)
        hsa_backward_queries[tiles(q)](q, K, V, weights, do, dq, dw, *numbers, **constants, num_warps=8)
        hsa_backward_keys[(weights.shape[2], len(q))](q, K, V, weights.transpose(1, 2).contiguous(), do, dK, dV, *numbers, **constants, num_warps=8)
        return dq, dK, dV, dw


def tiles(q):
    return q.shape[1] // TOKENS, q.shape[0]


def sizes_of(q, K, weights):
    (_, L, h, D), C = q.shape, weights.shape[2]
    return (L, C, D ** -0.5), {'h': h, 'HP': 1 << (h - 1).bit_length(), 'T': TOKENS, 'S': K.shape[1] // C, 'D': D}


def fits(length, chunk_size, heads, head_dim):
    """Whether these kernels are written for such sizes; wider tiles were never tried."""
    return length % TOKENS == 0 and heads <= 8 and all(n in (16, 32, 64) for n in (chunk_size, head_dim))
