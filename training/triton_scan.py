"""The middle of a Mamba-2 layer on a GPU: convolution, SSD and gate, from the input projection's output to what the gate's norm reads.

Source: SSD in blocks, arXiv 2405.21060, section 6. The plain form, whose results these are, is in model.py; PyTorch's own kernels move the
same tensors through memory some ten times.
Shapes: B rows, L tokens, H heads of P, I = H P, N state size, Q tokens a block, c = L / Q blocks; a projected token is
        [z I | x I | B N | C N | dt H | padding], W wide.
Within a block, s is the running sum of the decays, its last value the block's. h_0 = 0; h_{b+1} = exp(s_last) h_b + sum_j exp(s_last - s_j) dt_j x_j B_j^T;
y_i = exp(s_i) h_b C_i + sum_{j<=i} exp(s_i - s_j) (C_i . B_j) dt_j x_j + D x_i."""
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

BLOCK = 64                      # Q
RESET_DECAY = -60.0             # as in model.py
CONV_TOKENS, CONV_WIDTH = 64, 64
STATE_TILE = 256                # elements of a state that a program passes from block to block


@triton.jit
def earlier(x, segment, t, ch, back: tl.constexpr, L, W, first):
    """Channels ch, counted from `first`, of the token that is `back` before each of t; zeros where it is of another row or segment."""
    inside = (t % L) >= back
    same = inside & (tl.load(segment + t - back, mask=inside, other=-1) == tl.load(segment + t))
    return tl.load(x + (t - back).to(tl.int64)[:, None] * W + first + ch[None, :], mask=same[:, None], other=0.0).to(tl.float32)


@triton.jit
def convolved(x, segment, taps, bias, t, ch, L, W, first, K: tl.constexpr, C: tl.constexpr):
    """The causal convolution of K taps at tokens t and channels ch, before its silu."""
    sums = tl.load(bias + ch)[None, :]
    for back in tl.static_range(K):
        sums = sums + earlier(x, segment, t, ch, back, L, W, first) * tl.load(taps + (K - 1 - back) * C + ch)[None, :]
    return sums


@triton.jit
def conv_forward(x, segment, taps, bias, u, L, W, first, K: tl.constexpr, C: tl.constexpr, T: tl.constexpr, BC: tl.constexpr):
    """u [B*L, C] = silu(convolution), within a segment. x: the projected tokens."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    pre = convolved(x, segment, taps, bias, t, ch, L, W, first, K, C)
    tl.store(u + t.to(tl.int64)[:, None] * C + ch[None, :], pre * tl.sigmoid(pre))


@triton.jit
def conv_backward_sums(x, segment, taps, bias, du, partial, L, W, first, K: tl.constexpr, C: tl.constexpr, T: tl.constexpr, BC: tl.constexpr):
    """In place: du -> the gradient of the sums before the silu. Each block of T tokens leaves its part of the gradients of the K taps and of
    the bias in partial [blocks, K + 1, C]."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    pre = convolved(x, segment, taps, bias, t, ch, L, W, first, K, C)
    gate, at = tl.sigmoid(pre), du + t.to(tl.int64)[:, None] * C + ch[None, :]
    dpre = tl.load(at).to(tl.float32) * gate * (1 + pre * (1 - gate))
    tl.store(at, dpre)
    part = partial + tl.program_id(0) * (K + 1) * C + ch
    tl.store(part + K * C, tl.sum(dpre, 0))
    for back in tl.static_range(K):                  # loaded again, from the cache
        tl.store(part + (K - 1 - back) * C, tl.sum(dpre * earlier(x, segment, t, ch, back, L, W, first), 0))


@triton.jit
def conv_backward_inputs(dpre, segment, taps, dx, L, W, first, K: tl.constexpr, C: tl.constexpr, T: tl.constexpr, BC: tl.constexpr):
    """dx, in the place that x has among the projected tokens."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    here = tl.load(segment + t)
    gradient = tl.zeros((T, BC), tl.float32)
    for ahead in tl.static_range(K):
        inside = (t % L) + ahead < L
        same = inside & (tl.load(segment + t + ahead, mask=inside, other=-1) == here)
        value = tl.load(dpre + (t + ahead).to(tl.int64)[:, None] * C + ch[None, :], mask=same[:, None], other=0.0).to(tl.float32)
        gradient += value * tl.load(taps + (K - 1 - ahead) * C + ch)[None, :]
    tl.store(dx + t.to(tl.int64)[:, None] * W + first + ch[None, :], gradient)


@triton.jit
def scan_forward(z, u, dt, sums, before, D, y, gated, blocks, C, H, W, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr):
    """y [B*L, I], gated = y silu(z), and the state before each block, before [B*c, H, P, N]. One program a row and head, block after block."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    state, skip = tl.zeros((P, N), tl.float32), tl.load(D + head)
    for number in range(blocks):
        block = row * blocks + number
        t = block * Q + i
        s, step = tl.load(sums + t * H + head), tl.load(dt + t * H + head)
        last = tl.load(sums + (block * Q + Q - 1) * H + head)
        x = tl.load(u + t[:, None] * C + head * P + p[None, :])
        b = tl.load(u + t[:, None] * C + H * P + n[None, :])
        c = tl.load(u + t[:, None] * C + H * P + N + n[None, :])
        gate = tl.load(z + t[:, None] * W + head * P + p[None, :]).to(tl.float32)
        inside = tl.where(i[:, None] >= i[None, :], tl.exp(tl.minimum(s[:, None] - s[None, :], 0.0)), 0.0)
        mix = tl.dot(c, tl.trans(b)) * inside * step[None, :]
        known = state.to(x.dtype)
        tl.store(before + ((block * H + head) * P + p[:, None]) * N + n[None, :], known)
        out = tl.dot(mix.to(x.dtype), x, tl.dot(c, tl.trans(known)) * tl.exp(s)[:, None]) + skip * x.to(tl.float32)
        at = t[:, None] * (H * P) + head * P + p[None, :]
        tl.store(y + at, out)
        tl.store(gated + at, out * gate * tl.sigmoid(gate))
        weighted = x.to(tl.float32) * (tl.exp(last - s) * step)[:, None]
        state = tl.dot(tl.trans(weighted.to(x.dtype)), b, state * tl.exp(last))


@triton.jit
def gate_backward(z, u, sums, y, dgated, dz, dy, dbefore, C, H, W, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr):
    """dz (in the place of z), dy, and dbefore [B*c, H, P, N] = sum_i exp(s_i) dy_i C_i^T."""
    block, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    t = block * Q + i
    at = t[:, None] * (H * P) + head * P + p[None, :]
    gate = tl.load(z + t[:, None] * W + head * P + p[None, :]).to(tl.float32)
    given, share = tl.load(dgated + at).to(tl.float32), tl.sigmoid(gate)
    tl.store(dz + t[:, None] * W + head * P + p[None, :], given * tl.load(y + at).to(tl.float32) * share * (1 + gate * (1 - share)))
    wanted = given * gate * share
    tl.store(dy + at, wanted)
    c = tl.load(u + t[:, None] * C + H * P + N + n[None, :])
    weighted = wanted * tl.exp(tl.load(sums + t * H + head))[:, None]
    tl.store(dbefore + ((block * H + head) * P + p[:, None]) * N + n[None, :], tl.dot(tl.trans(weighted.to(c.dtype)), c))


@triton.jit
def pass_states_backward(dstates, sums, blocks, H, Q: tl.constexpr, E: tl.constexpr, T: tl.constexpr, G: tl.constexpr):
    """In place: the gradient that each block's own reading gives to the state before it -> the gradient of the state after it:
    after_b = sum_{k > b} exp(last_{b+1} + ... + last_{k-1}) read_k. E = P N elements, T of them a program; G blocks at a time, from the end."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e, g = tl.program_id(2) * T + tl.arange(0, T), tl.arange(0, G)
    after_last = tl.zeros((T,), tl.float32)          # after the newest block of the group
    for group in range((blocks + G - 1) // G):
        number = blocks - 1 - group * G - g          # newest first
        known = number >= 0
        block = row * blocks + number
        last = tl.load(sums + (block * Q + Q - 1) * H + head, mask=known, other=0.0)
        at = dstates + (block * H + head)[:, None] * E + e[None, :]
        read = tl.load(at, mask=known[:, None], other=0.0).to(tl.float32)
        newer = tl.sum(tl.where(g[:, None] > g[None, :], last[None, :], 0.0), 1)    # decays of the group's newer blocks
        weight = tl.where(g[:, None] > g[None, :], tl.exp(tl.minimum(newer[:, None] - newer[None, :] - last[None, :], 0.0)), 0.0)
        after = tl.dot(weight, read) + tl.exp(newer)[:, None] * after_last[None, :]
        tl.store(at, after, mask=known[:, None])
        after_last = tl.sum(tl.where((g == G - 1)[:, None], after * tl.exp(last)[:, None] + read, 0.0), 0)


@triton.jit
def scan_backward(u, dt, sums, before, dafter, D, dy, du, ddt, dsums, dD, C, H: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
                  N: tl.constexpr):
    """du [B*L, C] (x, B and C), ddt and dsums [B*L, H], dD [B*c, H]: one program a block, one head after the other."""
    block = tl.program_id(0).to(tl.int64)
    i, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    t = block * Q + i
    b = tl.load(u + t[:, None] * C + H * P + n[None, :])
    c = tl.load(u + t[:, None] * C + H * P + N + n[None, :])
    near = tl.where(i[:, None] >= i[None, :], tl.dot(c, tl.trans(b)), 0.0)
    db, dc = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    for head in range(H):
        s, step = tl.load(sums + t * H + head), tl.load(dt + t * H + head)
        last = tl.load(sums + (block * Q + Q - 1) * H + head)
        x = tl.load(u + t[:, None] * C + head * P + p[None, :])
        given = tl.load(dy + t[:, None] * (H * P) + head * P + p[None, :])
        state = ((block * H + head) * P + p[:, None]) * N + n[None, :]
        h, dh = tl.load(before + state), tl.load(dafter + state)
        inside = tl.exp(tl.minimum(s[:, None] - s[None, :], 0.0))
        # Within the block.
        decayed = near * inside
        dmix = tl.dot(given, tl.trans(x))
        of_step = tl.sum(dmix * decayed, 0)
        dsum = tl.sum(dmix * decayed * step[None, :], 1) - of_step * step
        weighted = tl.where(i[:, None] >= i[None, :], dmix * inside * step[None, :], 0.0).to(x.dtype)
        dc = tl.dot(weighted, b, dc)
        db = tl.dot(tl.trans(weighted), c, db)
        dx = tl.dot(tl.trans(decayed.to(x.dtype)), given) * step[:, None]
        # What came from before the block.
        far = tl.dot((given.to(tl.float32) * tl.exp(s)[:, None]).to(x.dtype), h)
        dc += far
        dsum += tl.sum(far * c.to(tl.float32), 1)
        # What the block hands on.
        handed = tl.dot(b, tl.trans(dh))
        to_end = tl.exp(last - s)
        of_x = tl.sum(handed * x.to(tl.float32), 1) * to_end
        of_step += of_x
        dsum -= of_x * step
        dx += handed * (to_end * step)[:, None]
        db = tl.dot((x.to(tl.float32) * (to_end * step)[:, None]).to(x.dtype), dh, db)
        at_end = tl.sum(of_x * step, 0) + tl.exp(last) * tl.sum(tl.sum(h.to(tl.float32) * dh.to(tl.float32), 1), 0)
        dsum += tl.where(i == Q - 1, at_end, 0.0)
        # Beside it.
        dx += given.to(tl.float32) * tl.load(D + head)
        tl.store(dD + block * H + head, tl.sum(tl.sum(given.to(tl.float32) * x.to(tl.float32), 1), 0))
        tl.store(du + t[:, None] * C + head * P + p[None, :], dx)
        tl.store(ddt + t * H + head, of_step)
        tl.store(dsums + t * H + head, dsum)
    tl.store(du + t[:, None] * C + H * P + n[None, :], db)
    tl.store(du + t[:, None] * C + H * P + N + n[None, :], dc)


class GatedScan(torch.autograd.Function):
    """projected [B,L,W], segment [B,L], taps [K,I+2N], bias [I+2N], dt_bias, A_log, D [H], inner I -> [B,L,I] of projected's type."""

    @staticmethod
    def forward(context, projected, segment, taps, bias, dt_bias, A_log, D, inner):
        (B, L, W), (K, C), H = projected.shape, taps.shape, len(D)
        P, N, Q, blocks = inner // H, (C - inner) // 2, BLOCK, L // BLOCK
        projected, segment, taps, bias = projected.contiguous(), segment.contiguous(), taps.float().contiguous(), bias.float()
        starts = F.pad(segment[:, 1:] != segment[:, :-1], (1, 0)).unsqueeze(-1)
        dt = F.softplus(projected[..., inner + C:inner + C + H].float() + dt_bias)
        decay = torch.where(starts, RESET_DECAY, -torch.exp(A_log.float()) * dt)
        sums = decay.view(B, blocks, Q, H).cumsum(2).view(B, L, H)
        u = projected.new_empty(B, L, C)
        conv_forward[(B * L // CONV_TOKENS, C // CONV_WIDTH)](projected, segment, taps, bias, u, L, W, inner, K=K, C=C, T=CONV_TOKENS, BC=CONV_WIDTH)
        before, y, gated, D = projected.new_empty(B * blocks, H, P, N), projected.new_empty(B, L, inner), projected.new_empty(B, L, inner), D.float()
        scan_forward[(B, H)](projected, u, dt, sums, before, D, y, gated, blocks, C, H, W, Q=Q, P=P, N=N)
        context.save_for_backward(projected, segment, taps, bias, dt_bias, A_log, D, starts, dt, sums, u, before, y)
        return gated

    @staticmethod
    def backward(context, dgated):
        projected, segment, taps, bias, dt_bias, A_log, D, starts, dt, sums, u, before, y = context.saved_tensors
        (B, L, W), (K, C), H = projected.shape, taps.shape, len(D)
        inner = y.shape[2]
        P, N, Q, blocks = inner // H, (C - inner) // 2, BLOCK, L // BLOCK
        dgated = dgated.to(projected.dtype).contiguous()
        dprojected, dy, dafter = torch.empty_like(projected), torch.empty_like(y), torch.empty_like(before)
        gate_backward[(B * blocks, H)](projected, u, sums, y, dgated, dprojected, dy, dafter, C, H, W, Q=Q, P=P, N=N)
        pass_states_backward[(B, H, P * N // STATE_TILE)](dafter, sums, blocks, H, Q=Q, E=P * N, T=STATE_TILE, G=16)
        du, ddt, dsums, dD = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(dt), dt.new_empty(B * blocks, H)
        scan_backward[(B * blocks,)](u, dt, sums, before, dafter, D, dy, du, ddt, dsums, dD, C, H=H, Q=Q, P=P, N=N, num_warps=8)
        partial = dt.new_empty(B * L // CONV_TOKENS, K + 1, C)
        tiles = (B * L // CONV_TOKENS, C // CONV_WIDTH)
        conv_backward_sums[tiles](projected, segment, taps, bias, du, partial, L, W, inner, K=K, C=C, T=CONV_TOKENS, BC=CONV_WIDTH)
        conv_backward_inputs[tiles](du, segment, taps, dprojected, L, W, inner, K=K, C=C, T=CONV_TOKENS, BC=CONV_WIDTH)
        partial = partial.sum(0)
        of_sums = dsums.view(B, blocks, Q, H)
        ddecay = (of_sums + of_sums.sum(2, keepdim=True) - of_sums.cumsum(2)).view(B, L, H)     # a decay is in every later sum
        ddecay = ddecay.masked_fill(starts, 0.0)
        rate = -torch.exp(A_log.float())
        ddt = ddt + ddecay * rate
        draw = ddt * -torch.expm1(-dt)                                                          # softplus' = 1 - exp(-softplus)
        dprojected[..., inner + C:inner + C + H] = draw
        dprojected[..., inner + C + H:] = 0
        return dprojected, None, partial[:K], partial[K], draw.sum((0, 1)), (ddecay * dt).sum((0, 1)) * rate, dD.sum(0), None


def fits(inner, heads, state, length):
    """Whether these kernels are written for such sizes; wider tiles were never tried."""
    head = inner // heads
    powers = all(n in (16, 32, 64) for n in (head, state))
    return powers and head * state % STATE_TILE == 0 and (inner + 2 * state) % CONV_WIDTH == 0 and length % BLOCK == 0
