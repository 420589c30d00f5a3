"""The network of the executable specification in a form that trains fast: SSD blocks instead of a loop over tokens, HSA in
its dense form over the few chunks of a row. Parameter names and arithmetic are those of the specification.

Sources: Mamba-2 / SSD: arXiv 2405.21060, section 6. Hierarchical sparse attention, RAMba: arXiv 2504.16795.
Shapes: B rows, L tokens, d width, I inner width, H SSM heads, P SSM head width, N state size, Q tokens per SSD block,
        C chunks, S tokens per chunk, R landmark width, h attention heads, D attention head width."""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from training.told import told

try:                                                                 # needed for speed alone, and there only with a GPU
    from training import triton_hsa, triton_scan
except ImportError:
    triton_hsa = triton_scan = None


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


def linear(inputs, outputs, std=0.02):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def ssd(x, dt, decay, Bm, Cm, block):
    """y_t = C_t . sum_{s<=t} exp(decay_{s+1} + ... + decay_t) dt_s B_s x_s, in blocks of `block` tokens.
    x [B,L,H,P]; dt, decay [B,L,H] (decay is the logarithm, <= 0); Bm, Cm [B,L,N] -> [B,L,H,P]. Recurrent state starts at 0."""
    B, L, H, P = x.shape
    c, Q, N = L // block, block, Bm.shape[-1]
    xd = (x * dt.to(x.dtype).unsqueeze(-1)).view(B, c, Q, H, P)
    Bm, Cm = Bm.reshape(B, c, Q, N), Cm.reshape(B, c, Q, N)
    sums = decay.view(B, c, Q, H).cumsum(2)                                         # within the block
    by_head = sums.permute(0, 1, 3, 2)                                              # [B,c,H,Q]
    inside = torch.exp((by_head.unsqueeze(-1) - by_head.unsqueeze(-2)).clamp(max=0))
    causal = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    mix = torch.einsum('bcin,bcjn->bcij', Cm, Bm).unsqueeze(2) * (inside * causal).to(x.dtype)
    y = torch.einsum('bchij,bcjhp->bcihp', mix, xd)
    last = sums[:, :, -1]                                                           # [B,c,H]
    to_end = torch.exp(last.unsqueeze(2) - sums).to(x.dtype)
    states = torch.einsum('bcjn,bcjhp->bchpn', Bm, xd * to_end.unsqueeze(-1))       # what each block adds
    total = torch.cat([torch.zeros_like(last[:, :1]), last], 1).cumsum(1)
    across = total[:, :-1].unsqueeze(2) - total[:, 1:].unsqueeze(1)                 # [B, c to, c from, H]
    earlier = torch.ones(c, c, dtype=torch.bool, device=x.device).tril(-1)[None, :, :, None]
    carry = torch.where(earlier, torch.exp(across.clamp(max=0)), torch.zeros_like(across)).to(x.dtype)
    before = torch.einsum('bijh,bjhpn->bihpn', carry, states)
    y = y + torch.einsum('bcin,bchpn->bcihp', Cm, before) * torch.exp(sums).to(x.dtype).unsqueeze(-1)
    return y.reshape(B, L, H, P)


RESET_DECAY = -60.0     # exp(-60) is 0 beside anything in bf16 or float32 sums


class Mamba2(nn.Module):
    """h + out_proj(RMSNorm(SSD(x) * silu(z))); one group of B and C shared by all heads."""
    parts = ['project', 'finish']                # what is beside kernels of our own

    def __init__(self, c):
        super().__init__()
        self.c, self.inner = c, c.expand * c.d_model
        self.heads, self.conv_dim = self.inner // c.ssm_head_dim, self.inner + 2 * c.ssm_state_size
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.in_proj = linear(c.d_model, self.inner + self.conv_dim + self.heads)
        self.conv1d_weight = nn.Parameter(torch.randn(c.conv_kernel, self.conv_dim) * 0.3)
        self.conv1d_bias = nn.Parameter(torch.zeros(self.conv_dim))
        dt = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.gate_norm = RMSNorm(self.inner, c.norm_eps)
        self.out_proj = linear(self.inner, c.d_model, 0.02 / math.sqrt(2 * (c.n_lower_layers + c.n_upper_layers)))

    def forward(self, h, segment):
        """h [B,L,d], segment [B,L] -> [B,L,d]. Convolution and state restart where the segment number changes."""
        return self.finish(h, self.mix(self.project(h), segment))

    def project(self, h):
        """-> z, x, B, C and dt of each token side by side, and columns of zeros up to a multiple of 8, which matrix products like."""
        weight = self.in_proj.weight
        return F.linear(self.norm(h), F.pad(weight, (0, 0, 0, -len(weight) % 8)))

    def mix(self, projected, segment):
        """-> SSD(x) * silu(z), [B,L,I]."""
        c, (B, L, width) = self.c, projected.shape
        z, xbc, dt, _ = projected.split([self.inner, self.conv_dim, self.heads, width - self.inner - self.conv_dim - self.heads], -1)
        taps = self.conv1d_weight.to(xbc.dtype)
        y = xbc * taps[-1] + self.conv1d_bias.to(xbc.dtype)
        for back in range(1, c.conv_kernel):
            same = (segment[:, back:] == segment[:, :-back]).unsqueeze(-1)
            y = y + F.pad(xbc[:, :-back] * same, (0, 0, back, 0)) * taps[-1 - back]
        x, Bm, Cm = F.silu(y).split([self.inner, c.ssm_state_size, c.ssm_state_size], -1)
        dt = F.softplus(dt.float() + self.dt_bias)
        starts = F.pad(segment[:, 1:] != segment[:, :-1], (1, 0)).unsqueeze(-1)
        decay = torch.where(starts, torch.full_like(dt, RESET_DECAY), -torch.exp(self.A_log.float()) * dt)
        x = x.view(B, L, self.heads, c.ssm_head_dim)
        y = ssd(x, dt, decay, Bm, Cm, min(c.ssm_block, L)) + x * self.D.to(x.dtype)[:, None]
        return y.reshape(B, L, self.inner) * F.silu(z)

    def finish(self, h, gated):
        return h + self.out_proj(self.gate_norm(gated))

    def fuse(self, length):
        """From now on, mix() by the kernels of triton_scan, for rows of multiples of `length` tokens; False where they are not written for such sizes."""
        fits = bool(triton_scan) and triton_scan.fits(self.inner, self.heads, self.c.ssm_state_size, length)
        if fits:
            self.mix = lambda projected, segment: triton_scan.GatedScan.apply(
                projected, segment, self.conv1d_weight, self.conv1d_bias, self.dt_bias, self.A_log, self.D, self.inner)
        return fits


def rotary(tokens, width, base):
    """Cosines and sines of the angles of rotary positions, [2, tokens, width / 2]."""
    angle = torch.arange(tokens).float()[:, None] * base ** (-torch.arange(0, width, 2).float() / width)
    return torch.stack([angle.cos(), angle.sin()])


def rope(x, table):
    """Rotary positions inside one chunk: x [..., T, D], halves rotated (not interleaved); table from rotary()."""
    (cos, sin), (a, b) = table.to(x.dtype), x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v):
    """Softmax attention without a mask, [..., T, D]."""
    if hasattr(F, 'scaled_dot_product_attention'):
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v


class EncoderLayer(nn.Module):
    """Pre-norm bidirectional attention (RMS-normed q and k, RoPE) and a SwiGLU MLP, within one chunk."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.attn_norm, self.qkv = RMSNorm(c.d_model, c.norm_eps), linear(c.d_model, 3 * c.d_model)
        self.q_norm, self.k_norm, self.attn_out = RMSNorm(c.head_dim), RMSNorm(c.head_dim), linear(c.d_model, c.d_model)
        self.mlp_norm, self.gate_up = RMSNorm(c.d_model, c.norm_eps), linear(c.d_model, 2 * c.encoder_ffn)
        self.down = linear(c.encoder_ffn, c.d_model)
        self.register_buffer('rotary', rotary(c.chunk_size + c.encoder_halo + 1, c.head_dim, c.rope_base), persistent=False)

    def forward(self, x):
        n, T, d = x.shape
        q, k, v = [t.view(n, T, self.c.n_heads, -1).transpose(1, 2) for t in self.qkv(self.attn_norm(x)).chunk(3, -1)]
        q, k = rope(self.q_norm(q), self.rotary), rope(self.k_norm(k), self.rotary)
        x = x + self.attn_out(attend(q, k, v).transpose(1, 2).reshape(n, T, d))
        g, u = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(g) * u)


class ChunkEncoder(nn.Module):
    """One chunk of hidden states -> K, V of each of its tokens and one landmark for the whole of it."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.cls, self.in_norm = nn.Parameter(torch.randn(c.d_model) * 0.02), RMSNorm(c.d_model, c.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.k_proj, self.v_proj = linear(c.d_model, c.head_dim), linear(c.d_model, c.head_dim)
        self.landmark_proj = linear(c.d_model, c.landmark_dim)
        self.k_norm, self.landmark_norm = RMSNorm(c.head_dim), RMSNorm(c.landmark_dim)

    def forward(self, h, segment):
        """h [B,C*S,d], segment [B,C*S] -> K, V [B,C*S,D] and landmarks [B,C,R]. A chunk's rows, those of the next chunk's first
        tokens (zeros where that belongs to another segment, or there is none), and the CLS row, which is the last."""
        (B, T, d), S = h.shape, self.c.chunk_size
        x = self.in_norm(h).view(B, -1, S, d)
        parts = [x.reshape(-1, S, d)]
        if self.c.encoder_halo:
            parts.append(self.halo(x, segment.view(B, -1, S)).reshape(-1, self.c.encoder_halo, d))
        x = torch.cat([*parts, self.cls.to(x.dtype).expand(parts[0].shape[0], 1, d)], 1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        K, V = self.k_norm(self.k_proj(x[:, :S])), self.v_proj(x[:, :S])
        return K.reshape(B, T, -1), V.reshape(B, T, -1), self.landmark_norm(self.landmark_proj(x[:, -1])).view(B, -1, self.c.landmark_dim)

    def halo(self, x, segment):
        """x [B,C,S,d], segment [B,C,S] -> the first rows of each next chunk, [B,C,halo,d]."""
        width = self.c.encoder_halo
        same = (segment[:, 1:, :width] == segment[:, :-1, -1:]).unsqueeze(-1)
        return F.pad(x[:, 1:, :width] * same, (0, 0, 0, 0, 0, 1))


def chunk_weights(scores, newest_margin):
    """scores [..., k] float32, most recent chunk first -> weights that sum to at most 1.
    0: stick-breaking. Otherwise a softmax with a null option, in which an older chunk must be better by about the margin."""
    if newest_margin == 0:
        return torch.exp(scores - F.softplus(scores, threshold=15.0).cumsum(-1))
    k = scores.shape[-1]
    older_than = torch.ones(k, k, device=scores.device).tril(-1)                     # [i, j]: j is more recent than i
    behind = F.softplus(scores.unsqueeze(-2) - scores.unsqueeze(-1) + newest_margin, threshold=15.0)
    scores = scores - (behind * older_than).sum(-1)
    return torch.softmax(F.pad(scores, (1, 0)), -1)[..., 1:]


class HSA(nn.Module):
    """Attend inside each selected chunk on its own, then mix the results by the chunk weights."""
    parts = ['queries', 'finish']

    def __init__(self, c):
        super().__init__()
        self.c, self.norm = c, RMSNorm(c.d_model, c.norm_eps)
        self.q_proj, self.o_proj = linear(c.d_model, c.d_model), linear(c.d_model, c.d_model)
        self.q_norm = RMSNorm(c.head_dim)

    def queries(self, h):
        return self.q_norm(self.q_proj(self.norm(h)).view(*h.shape[:2], self.c.n_heads, -1))

    def forward(self, h, K, V, weights):
        """Dense form: h [B,L,d]; K, V [B,C*S,D]; weights [B,L,C], zero where a chunk is not selected."""
        return self.finish(h, self.attend(self.queries(h), K, V, weights))

    def attend(self, q, K, V, weights):
        """q [B,L,h,D] -> [B,L,h,D]."""
        (B, L, heads, D), S = q.shape, self.c.chunk_size
        q = q.transpose(1, 2).reshape(B, -1, D)                                      # [B,h*L,D]
        scores = (q @ K.transpose(1, 2) * D ** -0.5).view(B, heads, L, -1, S)
        p = torch.softmax(scores.float(), -1).to(V.dtype)
        p = (p * weights[:, None, :, :, None].to(p.dtype)).view(B, heads * L, -1)
        return (p @ V).view(B, heads, L, D).transpose(1, 2)

    def finish(self, h, o):
        return h + self.o_proj(o.reshape(h.shape))

    def fuse(self, length):
        """From now on, attend() by the kernels of triton_hsa, for readers of `length` tokens; False where they are not written for such sizes."""
        fits = bool(triton_hsa) and triton_hsa.fits(length, self.c.chunk_size, self.c.n_heads, self.c.head_dim)
        if fits:
            self.attend = triton_hsa.SparseAttention.apply
        return fits

    def gathered(self, h, K, V, weights):
        """The form for large memories: K, V [B,L,k,S,D] of the selected chunks, weights [B,L,k]."""
        q = self.queries(h)
        p = torch.softmax(torch.einsum('blhd,blksd->blhks', q, K).float() * q.shape[-1] ** -0.5, -1) * weights[:, :, None, :, None]
        return h + self.o_proj(torch.einsum('blhks,blksd->blhd', p.to(V.dtype), V).reshape(h.shape))


class Look(nn.Module):
    """A second look at chunks: corrects their landmark scores by what their tokens say."""

    def __init__(self, c):
        super().__init__()
        self.c, self.norm, self.q_proj = c, RMSNorm(c.d_model, c.norm_eps), linear(c.d_model, c.look_heads * c.head_dim)
        self.q_norm, self.head_weight = RMSNorm(c.head_dim), nn.Parameter(torch.full((c.look_heads,), 0.3))

    def queries(self, h):
        return self.q_norm(self.q_proj(self.norm(h)).view(*h.shape[:2], self.c.look_heads, -1))

    def mass(self, logits):
        """logits [...,S] of a head over a chunk's tokens -> the logarithm of their mean exp."""
        return logits.float().logsumexp(-1) - math.log(self.c.chunk_size)

    def forward(self, h, K):
        """Dense form: h [B,L,d] lower hidden states, K [B,C*S,D] -> corrections [B,L,C]."""
        (B, L, _), S, D = h.shape, self.c.chunk_size, self.c.head_dim
        q = self.queries(h).transpose(1, 2).reshape(B, -1, D)                        # [B,h*L,D]
        mass = self.mass((q @ K.transpose(1, 2) * D ** -0.5).view(B, self.c.look_heads, L, -1, S))
        return (mass * self.head_weight.float().view(-1, 1, 1)).sum(1)

    def gathered(self, h, K):
        """K [B,L,k,S,D] of the selected chunks -> corrections [B,L,k]."""
        mass = self.mass(torch.einsum('blhd,blksd->blkhs', self.queries(h), K) * K.shape[-1] ** -0.5)
        return (mass * self.head_weight.float()).sum(-1)


@dataclass
class Passes:
    """What one pass over a batch gives. C chunks of a row, X chunks that its reader sees."""
    hidden: torch.Tensor             # [B,L,d] final hidden states of the readers
    queries: torch.Tensor            # [B,L,R]
    landmarks: torch.Tensor          # [B,C,R]
    corrected: torch.Tensor          # [B,L,X] scores after the second look, less told_penalty where told
    first_own: int                   # where the row's own chunks begin among the X


class Ramba(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.lower = nn.ModuleList(Mamba2(c) for _ in range(c.n_lower_layers))
        self.chunk_encoder = ChunkEncoder(c)
        self.retrieval_norm, self.retrieval_proj = RMSNorm(c.d_model, c.norm_eps), linear(c.d_model, c.landmark_dim)
        self.retrieval_q_norm, self.retrieval_log_scale = RMSNorm(c.landmark_dim), nn.Parameter(torch.tensor(math.log(16.0)))
        self.upper = nn.ModuleList(Mamba2(c) for _ in range(c.n_upper_layers))
        self.hsa = nn.ModuleList(HSA(c) for _ in range(c.n_upper_layers // c.hsa_every))
        self.look = Look(c) if c.look_heads else None
        self.norm = RMSNorm(c.d_model, c.norm_eps)

    def compile_blocks(self, scanned_tokens, reader_tokens, fused=True):
        """For training on a GPU: compiles the blocks one by one (they repeat, so this is quick), where torch can; fused: leaves the middle of
        those that have kernels of their own to them. Every sequence has a multiple of scanned_tokens, a reader reader_tokens."""
        if not hasattr(torch, 'compile'):
            return
        for block, length in [*((b, scanned_tokens) for b in (*self.lower, *self.upper)), *((b, reader_tokens) for b in self.hsa)]:
            for part in block.parts if fused and block.fuse(length) else ['forward']:
                setattr(block, part, torch.compile(getattr(block, part), dynamic=False))
        for block in [self.chunk_encoder, *([self.look] if self.look else [])]:
            block.forward = torch.compile(block.forward, dynamic=False)

    def run_lower(self, ids, segment):
        """ids, segment [B,L] -> hidden states [B,L,d]."""
        h = self.embedding(ids)
        for layer in self.lower:
            h = layer(h, segment)
        return h

    def run_upper(self, h, segment, read):
        """h [B,L,d] of the lower half -> final hidden states. read(hsa, h) is one HSA layer over whatever is selected."""
        for i, layer in enumerate(self.upper):
            if i % self.c.hsa_every == 0:
                h = read(self.hsa[i // self.c.hsa_every], h)
            h = layer(h, segment)
        return self.norm(h)

    def queries(self, h):
        """h [B,L,d] -> retrieval queries [B,L,R]."""
        return self.retrieval_q_norm(self.retrieval_proj(self.retrieval_norm(h)))

    def score(self, queries, landmarks):
        """[..., L, R] and [..., C, R] -> scores [..., L, C] in float32."""
        return (queries @ landmarks.transpose(-1, -2)).float() * (torch.exp(self.retrieval_log_scale.float()) / self.c.landmark_dim)

    def forward(self, memory, memory_segment, reader, reader_segment, values=None, asked=None, alone=None, strangers=0):
        """memory [B,M], reader [B,L] token ids with their segments, `values` of the readers (told.py) -> Passes. Readers see every chunk of their own row's memory, and,
        as in a large memory, `strangers` chunks of other rows (fewer where there are not so many): those that score best at the row's positions `asked` (flat, [n]).
        Positions `alone` (bool [B,L]) see none of them."""
        M = memory.shape[1]
        segment = torch.cat([memory_segment, reader_segment + 1_000_000], 1)
        h = self.run_lower(torch.cat([memory, reader], 1), segment)
        K, V, landmarks = self.chunk_encoder(h[:, :M].contiguous(), memory_segment)
        h = h[:, M:].contiguous()
        queries, own, first_own, seen = self.queries(h), landmarks, 0, landmarks
        strangers = min(strangers, (own.shape[0] - 1) * own.shape[1]) // 2 * 2      # no more than there are
        if strangers:
            chosen = self.choose_strangers(queries, landmarks, asked, strangers)
            K, V, seen = (self.among(t, chosen, own.shape[1]) for t in (K, V, landmarks))
            first_own = strangers // 2
        scores = self.score(queries, seen)
        if strangers:
            is_stranger = torch.ones(scores.shape[-1], dtype=torch.bool, device=h.device)
            is_stranger[first_own:first_own + own.shape[1]] = False
            scores = scores.masked_fill(alone.unsqueeze(-1) & is_stranger, -1e4)
        index = scores.topk(min(self.c.chunks_per_read, scores.shape[-1]), -1).indices.sort(-1, descending=True).values
        corrected = scores + self.look(h, K) if self.look else scores
        if values and self.tells_once:
            corrected = self.penalized(corrected, told(corrected.detach().gather(-1, index), index, corrected.shape[-1], values, self.weigh))
        chosen = chunk_weights(corrected.gather(-1, index), self.c.newest_margin)
        weights = torch.zeros_like(scores).scatter(-1, index, chosen)
        hidden = self.run_upper(h, reader_segment, lambda hsa, x: hsa(x, K, V, weights))
        return Passes(hidden, queries, own, corrected, first_own)

    @torch.no_grad()
    def choose_strangers(self, queries, landmarks, asked, count):
        """For each row, `count` chunks of other rows -> [B,count] numbers of chunks of the batch, in random order."""
        (B, L, R), C = queries.shape, landmarks.shape[1]
        scores = self.score(queries.reshape(-1, R)[asked], landmarks.reshape(-1, R))                # [n,B*C]
        row = torch.div(asked, L, rounding_mode='floor')
        best = torch.full((B, B * C), -1e4, device=scores.device)
        best = best.scatter_reduce(0, row[:, None].expand(-1, B * C), scores, 'amax')
        own = torch.arange(B, device=row.device)[:, None] == torch.div(torch.arange(B * C, device=row.device), C, rounding_mode='floor')
        found = best.masked_fill(own, float('-inf')).topk(count, -1).indices
        return found.gather(1, torch.rand(found.shape, device=found.device).argsort(1))

    @staticmethod
    def among(own, chosen, chunks):
        """own [B,T,W], T rows of so many chunks -> the same with the chosen chunks, half of them older than the own, half newer."""
        B, T, W = own.shape
        others, cut = own.reshape(B * chunks, -1, W)[chosen].reshape(B, -1, W), chosen.shape[1] // 2 * (T // chunks)
        return torch.cat([others[:, :cut], own, others[:, cut:]], 1)

    @property
    def tells_once(self):
        return self.c.told_penalty > 0

    def penalized(self, scores, told):
        """Scores as they are where a chunk has been told already."""
        return scores - self.c.told_penalty * told.to(scores.dtype)

    def weigh(self, scores, told):
        return chunk_weights(self.penalized(scores, told), self.c.newest_margin)

    def logits(self, h):
        return F.linear(h, self.embedding.weight.to(h.dtype))
