"""RAMba in plain PyTorch: the executable specification of the model that the service runs.

Everything here favours being read over being fast. `Ramba.ingest` and `Ramba.read` are what the C++ engine
must reproduce (float32 arithmetic on the stored weights is the oracle); `Ramba.train_logits` is the same
network in the dense form that back-propagates, for training on short contexts.

Sources: Mamba-2 / SSD: arXiv 2405.21060. Hierarchical Sparse Attention and RAMba: arXiv 2504.16795.

Shapes: B batch, L tokens, d model width, I inner width (expand*d), H SSM heads, P SSM head width, N state size,
        C chunks, S tokens per chunk, R landmark width, h attention heads, D attention head width, k chunks read.
Attention K/V have ONE head here (n_kv_heads = 1); with more, each K/V head has its own landmarks and selection.
"""
import json
import math
import struct
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab_size: int = 8192
    d_model: int = 384
    n_lower_layers: int = 6
    n_upper_layers: int = 6
    expand: int = 2
    ssm_head_dim: int = 64
    ssm_state_size: int = 64
    conv_kernel: int = 4
    ssm_block: int = 128          # tokens per SSD block; a matter of speed, not of the result
    n_heads: int = 6
    n_kv_heads: int = 1
    chunk_size: int = 64          # S
    chunks_per_read: int = 8      # k
    landmark_dim: int = 256       # R
    encoder_layers: int = 1
    encoder_ffn: int = 1024
    hsa_every: int = 2            # one HSA layer before every second upper Mamba layer
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    segment_size: int = 4096      # recurrent state restarts every segment and at every document
    encoder_halo: int = 0         # tokens of the next chunk that the chunk encoder sees beside a chunk's own
    look_heads: int = 0           # heads of the second look at the chunks read; 0: none
    newest_margin: int = 0        # of the chunk weights (newest_softmax); 0: stick-breaking
    told_penalty: int = 0         # by which a chunk scores lower once an answer has told a value from it; 0: not at all


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Mamba2(nn.Module):
    """h + out_proj(RMSNorm(SSD(x) * silu(z))); one group of B and C shared by all heads."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, self.inner = c, c.expand * c.d_model
        self.heads, self.conv_dim = self.inner // c.ssm_head_dim, self.inner + 2 * c.ssm_state_size
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.in_proj = nn.Linear(c.d_model, self.inner + self.conv_dim + self.heads, bias=False)  # -> z, xBC, dt
        self.conv1d_weight = nn.Parameter(torch.randn(c.conv_kernel, self.conv_dim) * 0.3)  # [tap, channel]; last tap = now
        self.conv1d_bias = nn.Parameter(torch.zeros(self.conv_dim))
        dt = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.gate_norm = RMSNorm(self.inner, c.norm_eps)
        self.out_proj = nn.Linear(self.inner, c.d_model, bias=False)

    def forward(self, h, state=None):
        """h [B,L,d]; state = (conv [B,conv_kernel-1,conv_dim], ssm [B,H,P,N]) or None for zeros. Returns (h, state)."""
        c, (B, L, _) = self.c, h.shape
        z, xbc, dt = self.in_proj(self.norm(h)).split([self.inner, self.conv_dim, self.heads], -1)
        conv = h.new_zeros(B, c.conv_kernel - 1, self.conv_dim) if state is None else state[0]
        ssm = h.new_zeros(B, self.heads, c.ssm_head_dim, c.ssm_state_size) if state is None else state[1]
        past = torch.cat([conv, xbc], 1)
        xbc = F.silu(sum(past[:, t:t + L] * self.conv1d_weight[t] for t in range(c.conv_kernel)) + self.conv1d_bias)
        x, Bm, Cm = xbc.split([self.inner, c.ssm_state_size, c.ssm_state_size], -1)
        x, dt = x.view(B, L, self.heads, c.ssm_head_dim), F.softplus(dt + self.dt_bias)
        decay, out = torch.exp(-torch.exp(self.A_log) * dt), []                       # [B,L,H]
        for t in range(L):                                                            # the recurrence, one token at a time
            ssm = ssm * decay[:, t, :, None, None] + (dt[:, t, :, None] * x[:, t]).unsqueeze(-1) * Bm[:, t, None, None]
            out.append((ssm * Cm[:, t, None, None]).sum(-1))
        y = torch.stack(out, 1) + x * self.D[:, None]
        y = self.gate_norm(y.reshape(B, L, self.inner) * F.silu(z))
        return h + self.out_proj(y), (past[:, -(c.conv_kernel - 1):], ssm)


def rope(x, base):
    """Rotary positions inside one chunk: x [..., T, D], halves rotated (not interleaved)."""
    T, D = x.shape[-2:]
    angle = torch.arange(T, device=x.device).float()[:, None] * base ** (-torch.arange(0, D, 2, device=x.device).float() / D)
    a, b = x[..., :D // 2], x[..., D // 2:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class EncoderLayer(nn.Module):
    """Pre-norm bidirectional attention (RMS-normed q and k, RoPE) and a SwiGLU MLP, within one chunk."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, D = c, c.d_model // c.n_heads
        self.attn_norm, self.qkv = RMSNorm(c.d_model, c.norm_eps), nn.Linear(c.d_model, 3 * c.d_model, bias=False)
        self.q_norm, self.k_norm, self.attn_out = RMSNorm(D), RMSNorm(D), nn.Linear(c.d_model, c.d_model, bias=False)
        self.mlp_norm, self.gate_up = RMSNorm(c.d_model, c.norm_eps), nn.Linear(c.d_model, 2 * c.encoder_ffn, bias=False)
        self.down = nn.Linear(c.encoder_ffn, c.d_model, bias=False)

    def forward(self, x):
        n, T, d = x.shape
        q, k, v = [t.view(n, T, self.c.n_heads, -1).transpose(1, 2) for t in self.qkv(self.attn_norm(x)).chunk(3, -1)]
        q, k = rope(self.q_norm(q), self.c.rope_base), rope(self.k_norm(k), self.c.rope_base)
        p = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        x = x + self.attn_out((p @ v).transpose(1, 2).reshape(n, T, d))
        g, u = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(g) * u)


class ChunkEncoder(nn.Module):
    """One chunk of hidden states -> K, V for each of its tokens and one landmark for the whole of it."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, D = c, c.d_model // c.n_heads
        self.cls, self.in_norm = nn.Parameter(torch.randn(c.d_model) * 0.02), RMSNorm(c.d_model, c.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.k_proj = nn.Linear(c.d_model, c.n_kv_heads * D, bias=False)
        self.v_proj = nn.Linear(c.d_model, c.n_kv_heads * D, bias=False)
        self.landmark_proj = nn.Linear(c.d_model, c.landmark_dim, bias=False)
        self.k_norm, self.landmark_norm = RMSNorm(D), RMSNorm(c.landmark_dim)

    def forward(self, h, halo):
        """h [C,S,d], halo [C,encoder_halo,d] -> K [C,S,D], V [C,S,D], landmark [C,R]. The CLS token is the LAST position."""
        x, S = torch.cat([self.in_norm(h), self.in_norm(halo), self.cls.expand(h.shape[0], 1, -1)], 1), h.shape[1]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.k_norm(self.k_proj(x[:, :S])), self.v_proj(x[:, :S]), self.landmark_norm(self.landmark_proj(x[:, -1]))


def stick_breaking(scores):
    """scores [..., k], most recent chunk first, -inf where absent -> weights that sum to at most 1 (arXiv 2504.16795)."""
    return torch.exp(scores - F.softplus(scores).cumsum(-1)).masked_fill(scores == float('-inf'), 0.0)


def newest_softmax(scores, margin):
    """The same by a softmax with a null option, where of nearly equal scores the more recent weighs more:
    u_i = s_i - sum_{j < i} softplus(s_j - s_i + margin), w_i = exp(u_i) / (1 + sum_j exp(u_j))."""
    u = [scores[..., i] - sum(F.softplus(scores[..., j] - scores[..., i] + margin) for j in range(i)) for i in range(scores.shape[-1])]
    return torch.softmax(torch.stack([torch.zeros_like(u[0]), *u], -1), -1)[..., 1:]


class Look(nn.Module):
    """A second look at the selected chunks: corrects their landmark scores by what their tokens say."""

    def __init__(self, c: Config):
        super().__init__()
        D = c.d_model // c.n_heads
        self.c, self.norm, self.q_proj = c, RMSNorm(c.d_model, c.norm_eps), nn.Linear(c.d_model, c.look_heads * D, bias=False)
        self.q_norm, self.head_weight = RMSNorm(D), nn.Parameter(torch.full((c.look_heads,), 0.3))

    def forward(self, h, K):
        """h [L,d] lower hidden states of the reader; K [L,k,S,D] -> what is added to the scores, [L,k]."""
        q = self.q_norm(self.q_proj(self.norm(h)).view(h.shape[0], self.c.look_heads, -1))
        logits = torch.einsum('lhD,lksD->lkhs', q, K) * q.shape[-1] ** -0.5
        return ((logits.logsumexp(-1) - math.log(K.shape[2])) * self.head_weight).sum(-1)


class HSA(nn.Module):
    """Attend inside each selected chunk on its own, then mix the k results by the chunk weights."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, self.norm = c, RMSNorm(c.d_model, c.norm_eps)
        self.q_proj, self.o_proj = nn.Linear(c.d_model, c.d_model, bias=False), nn.Linear(c.d_model, c.d_model, bias=False)
        self.q_norm = RMSNorm(c.d_model // c.n_heads)

    def forward(self, h, K, V, weights):
        """h [L,d]; K, V [L,k,S,D] gathered for each token; weights [L,k]. No causal mask: only whole past chunks are read."""
        q = self.q_norm(self.q_proj(self.norm(h)).view(h.shape[0], self.c.n_heads, -1))
        p = torch.softmax(torch.einsum('lhD,lksD->lhks', q, K) * q.shape[-1] ** -0.5, -1) * weights[:, None, :, None]
        return h + self.o_proj(torch.einsum('lhks,lksD->lhD', p, V).reshape(h.shape))


class Ramba(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.lower = nn.ModuleList(Mamba2(c) for _ in range(c.n_lower_layers))
        self.chunk_encoder = ChunkEncoder(c)
        self.retrieval_norm, self.retrieval_proj = RMSNorm(c.d_model, c.norm_eps), nn.Linear(c.d_model, c.landmark_dim, bias=False)
        self.retrieval_q_norm, self.retrieval_log_scale = RMSNorm(c.landmark_dim), nn.Parameter(torch.tensor(math.log(8.0)))
        self.upper = nn.ModuleList(Mamba2(c) for _ in range(c.n_upper_layers))
        self.hsa = nn.ModuleList(HSA(c) for _ in range(c.n_upper_layers // c.hsa_every))
        self.look = Look(c) if c.look_heads else None
        self.norm = RMSNorm(c.d_model, c.norm_eps)

    def run_lower(self, ids):
        h = self.embedding(ids)[None]
        for layer in self.lower:
            h, _ = layer(h)
        return h[0]

    def ingest(self, ids, pad_id):
        """One document -> its chunks. ids [T] -> K [C,S,D], V [C,S,D], landmarks [C,R].

        Recurrent state restarts at every segment, so a segment's chunks are a function of its own tokens alone: segments
        run in parallel, a document can be dropped without touching another, and memories can be read together in any order.
        The last chunk is padded with pad_id. Only the lower half of the network runs here.
        """
        c, parts = self.c, []
        for s in range(0, len(ids), c.segment_size):
            seg = ids[s:s + c.segment_size]
            seg = F.pad(seg, (0, -len(seg) % c.chunk_size), value=pad_id)
            h = self.run_lower(seg)
            following = F.pad(h, (0, 0, 0, c.chunk_size + c.encoder_halo))       # zeros beyond the segment's end
            halo = [following[at:at + c.encoder_halo] for at in range(c.chunk_size, len(h) + c.chunk_size, c.chunk_size)]
            parts.append(self.chunk_encoder(h.view(-1, c.chunk_size, c.d_model), torch.stack(halo)))
        return [torch.cat(t) for t in zip(*parts)]

    def select(self, h, landmarks, K, ids=None, tokens=None):
        """h [L,d] lower hidden states of the reader; landmarks [C,R], K [C,S,D], oldest first -> (chunk index [L,k], landmark score,
        weight). ids [L] and tokens: those of the reader, with told_penalty."""
        q = self.retrieval_q_norm(self.retrieval_proj(self.retrieval_norm(h)))
        scores = q @ landmarks.T * (torch.exp(self.retrieval_log_scale) / self.c.landmark_dim)   # [L,C]
        index = scores.topk(min(self.c.chunks_per_read, landmarks.shape[0]), -1).indices.sort(-1, descending=True).values
        scores = scores.gather(-1, index)
        final = scores + self.look(h, K[index]) if self.look else scores
        if not self.c.told_penalty:
            return index, scores, self.weigh(final)
        weights, told, totals, answering = [], set(), {}, False
        for t, token in enumerate(ids.tolist()):
            if token == tokens.answer:
                told, totals, answering = set(), {}, True
            elif token in (tokens.question, tokens.document):
                told, totals, answering = set(), {}, False
            elif answering and token == tokens.line_end:                             # the next value: who told this one?
                most, best = max(((total, i) for i, total in totals.items()), default=(0.0, None))    # of equal ones the newest
                told, totals = told | {best} if most > 0 else told, {}
            lowered = torch.tensor([self.c.told_penalty * float(i in told) for i in index[t].tolist()])
            weights.append(self.weigh(final[t] - lowered))
            if answering:
                for i, weight in zip(index[t].tolist(), weights[t].tolist()):
                    totals[i] = totals.get(i, 0.0) + weight
        return index, scores, torch.stack(weights)

    def weigh(self, scores):
        return newest_softmax(scores, self.c.newest_margin) if self.c.newest_margin else stick_breaking(scores)

    def read(self, ids, K, V, landmarks, tokens=None):
        """A reader (prompt, question, generated text) over stored chunks: ids [L] -> logits [L,vocab], and its selection.
        The reader's own recurrent state starts at zero; all it knows of the past comes through HSA. tokens: ids `question`, `answer`,
        `document` and `line_end` of the bundle's special tokens, with told_penalty."""
        h = self.run_lower(ids)
        index, scores, weights = self.select(h, landmarks, K, ids, tokens)
        for i, layer in enumerate(self.upper):
            if i % self.c.hsa_every == 0:
                h = self.hsa[i // self.c.hsa_every](h, K[index], V[index], weights)
            h = layer(h[None])[0][0]
        return self.norm(h) @ self.embedding.weight.T, (index, scores, weights)


def quantize(tensors):
    """Matrices -> int8 with one float32 scale per row (name.scale); vectors stay float32. Half the bytes of bfloat16."""
    out = {}
    for name, t in tensors.items():
        if t.ndim == 2 and 'conv1d' not in name:
            scale = t.float().abs().amax(1).clamp(min=1e-12) / 127
            out[name], out[name + '.scale'] = (t.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale
        else:
            out[name] = t.float()
    return out


def dequantize(tensors):
    return {n: t.float() * tensors[n + '.scale'][:, None] if n + '.scale' in tensors else t.float()
            for n, t in tensors.items() if not n.endswith('.scale')}


def save_safetensors(tensors, path):
    """The safetensors layout: u64 header length, JSON header, raw little-endian data."""
    kinds = {torch.float32: 'F32', torch.bfloat16: 'BF16', torch.int8: 'I8', torch.int64: 'I64', torch.int32: 'I32'}
    header, blobs, at = {}, [], 0
    for name, t in tensors.items():
        t = t.detach().contiguous().cpu()
        raw = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes()
        header[name] = {'dtype': kinds[t.dtype], 'shape': list(t.shape), 'data_offsets': [at, at + len(raw)]}
        blobs.append(raw); at += len(raw)
    head = json.dumps(header).encode(); head += b' ' * (-len(head) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head + b''.join(blobs))


def load_safetensors(path):
    kinds = {'F32': torch.float32, 'BF16': torch.bfloat16, 'I8': torch.int8, 'I64': torch.int64, 'I32': torch.int32}
    with open(path, 'rb') as f:
        n = struct.unpack('<Q', f.read(8))[0]; header = json.loads(f.read(n)); data = bytearray(f.read())
    return {k: torch.frombuffer(data, dtype=kinds[v['dtype']], offset=v['data_offsets'][0],
                                count=(v['data_offsets'][1] - v['data_offsets'][0]) // torch.empty(0, dtype=kinds[v['dtype']]).element_size()
                                ).reshape(v['shape']) for k, v in header.items() if k != '__metadata__'}


def load(folder):
    """A model bundle: config.json, model.safetensors, tokenizer.model (SentencePiece). Weights become float32."""
    c = json.load(open(f'{folder}/config.json'))
    m = Ramba(Config(**{k: v for k, v in c.items() if k in Config.__dataclass_fields__}))
    m.load_state_dict(dequantize(load_safetensors(f'{folder}/model.safetensors')))
    return m.eval(), c
