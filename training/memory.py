"""A memory of up to hundreds of millions of tokens on one GPU, for evaluation: K, V and landmarks of all chunks in bfloat16,
exact scan of all landmarks. It does what the engine does, in tensors."""
import torch

from training.model import chunk_weights
from training.told import renumbered, told, values_of

SLAB_CHUNKS = 1 << 18            # landmarks scored at a time


class LargeMemory:
    """Chunks in the order in which they were ingested. `model` runs in bfloat16 on CUDA, float32 on CPU."""

    def __init__(self, model, tokenizer, chunks_max, device, batch_rows=64):
        c, kind = model.c, torch.bfloat16 if str(device).startswith('cuda') else torch.float32
        self.model, self.tokenizer, self.device, self.kind, self.count, self.batch_rows = model, tokenizer, device, kind, 0, batch_rows
        self.K = torch.empty(chunks_max, c.chunk_size, c.head_dim, dtype=kind, device=device)
        self.V = torch.empty_like(self.K)
        self.landmarks = torch.empty(chunks_max, c.landmark_dim, dtype=kind, device=device)
        self.encode = self._encode
        if hasattr(torch, 'compile') and kind == torch.bfloat16:
            self.encode = torch.compile(self._encode, dynamic=False)

    def _encode(self, ids, segment):
        return self.model.chunk_encoder(self.model.run_lower(ids, segment), segment)

    def autocast(self):
        return torch.autocast(str(self.device).split(':')[0], torch.bfloat16, enabled=self.kind == torch.bfloat16)

    @torch.no_grad()
    def ingest(self, ids, segment=None):
        """ids [n, T] on the device: n stretches of text whose state begins at zero and where `segment` changes."""
        segment = torch.zeros_like(ids) if segment is None else segment
        with self.autocast():                    # the compiled form is for whole batches; another shape would compile again
            K, V, landmarks = (self.encode if len(ids) == self.batch_rows else self._encode)(ids, segment)
        at, new = self.count, landmarks.shape[0] * landmarks.shape[1]
        self.K[at:at + new], self.V[at:at + new] = K.view(new, *self.K.shape[1:]), V.view(new, *self.K.shape[1:])
        self.landmarks[at:at + new] = landmarks.view(new, -1)
        self.count += new

    @torch.no_grad()
    def select(self, queries, begin=0, end=None):
        """queries [n, L, R] over chunks [begin, end) -> (index [n,L,k] newest first, score [n,L,k])."""
        end, k = self.count if end is None else end, self.model.c.chunks_per_read
        flat = queries.reshape(-1, queries.shape[-1]).to(self.kind).float()
        scale = torch.exp(self.model.retrieval_log_scale.float()) / self.model.c.landmark_dim
        best = flat.new_full((flat.shape[0], k), float('-inf'))
        index = torch.zeros(flat.shape[0], k, dtype=torch.long, device=flat.device)
        for at in range(begin, end, SLAB_CHUNKS):
            slab = self.landmarks[at:min(at + SLAB_CHUNKS, end)].float()
            score, found = (flat @ slab.T).mul_(scale).topk(min(k, len(slab)), -1)
            best, order = torch.cat([best, score], 1).topk(k, -1)
            index = torch.cat([index, found + at], 1).gather(1, order)
        index, order = index.sort(-1, descending=True)
        return index.view(*queries.shape[:2], k), best.gather(1, order).view(*queries.shape[:2], k)

    @torch.no_grad()
    def choose(self, ids, begin=0, end=None):
        """A batch of readers over chunks [begin, end): ids [n, L] -> lower hidden states [n, L', d], segment [n, L'], and of each token
        the chunks chosen by their landmarks: index and score [n, L', k]. L': L, padded to whole blocks where it is longer than one."""
        length, block = ids.shape[1], self.model.c.ssm_block
        ids = torch.nn.functional.pad(ids, (0, -length % block if length > block else 0))
        segment = torch.zeros_like(ids)
        with self.autocast():
            h = self.model.run_lower(ids, segment)
            return h, segment, *self.select(self.model.queries(h), begin, end)

    @torch.no_grad()
    def read(self, ids, begin=0, end=None):
        """A batch of readers over chunks [begin, end): ids [n, L] -> logits [n, L, vocab], index [n,L,k], score [n,L,k] (after the
        second look, where there is one, and less told_penalty where the answer has told the chunk)."""
        length = ids.shape[1]
        h, segment, index, score = self.choose(ids, begin, end)
        logits, score = self.tell(ids, h, segment, index, score)
        return logits[:, :length], index[:, :length], score[:, :length]

    @torch.no_grad()
    def tell(self, ids, h, segment, index, score):
        """ids, and what choose() gave for them -> logits [n, L', vocab], score [n,L',k] as read() has it."""
        model = self.model
        with self.autocast():
            K, V = self.K[index], self.V[index]
            score = score + model.look.gathered(h, K) if model.look else score
            if model.tells_once:
                score = model.penalized(score, self.told(ids, index, score))
            weights = chunk_weights(score.clamp(min=-1e4), model.c.newest_margin) * (score > float('-inf'))
            h = model.run_upper(h, segment, lambda hsa, x: hsa.gathered(x, K, V, weights))
            return model.logits(h).float(), score

    def told(self, ids, index, score):
        """Of the chunks chosen, those that earlier values of the answer were read from, bool [n,L',k]."""
        padded = torch.nn.functional.pad(ids, (0, index.shape[1] - ids.shape[1]), value=self.tokenizer.document)
        own = renumbered(index)
        return told(score.clamp(min=-1e4), own, own.shape[1] * own.shape[2], values_of(padded, self.tokenizer), self.model.weigh).gather(-1, own)


class Writers:
    """Readers that go on token by token. What earlier tokens have chosen is kept: only the newest asks the landmarks."""

    def __init__(self, memory, ids, begins, end=None):
        """ids [n, L] with room for what is to come; begins: how many tokens each row has."""
        self.memory, self.ids, self.lengths, self.end = memory, ids.clone(), torch.tensor(begins, device=ids.device), end
        _, self.segment, self.index, self.score = memory.choose(ids, 0, end)

    @torch.no_grad()
    def next(self):
        """Appends to each row its most likely token -> those [n]."""
        memory, rows, last = self.memory, torch.arange(len(self.ids), device=self.ids.device), self.lengths - 1
        padded = torch.nn.functional.pad(self.ids, (0, self.segment.shape[1] - self.ids.shape[1]))
        with memory.autocast():
            h = memory.model.run_lower(padded, self.segment)
            index, score = memory.select(memory.model.queries(h[rows, last].unsqueeze(1)), 0, self.end)
        self.index[rows, last], self.score[rows, last] = index[:, 0], score[:, 0]
        best = memory.tell(self.ids, h, self.segment, self.index, self.score)[0][rows, last].argmax(-1)
        self.ids[rows, self.lengths] = best
        self.lengths += 1
        return best
