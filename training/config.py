"""Sizes of the network and the bundle's config.json. Field names are those of the executable specification."""
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

DOCUMENT_TOKEN, QUESTION_TOKEN, ANSWER_TOKEN = '<doc>', '<q>', '<a>'
LINE_END_TOKEN = '<0x0A>'       # ends a value of a list


@dataclass(frozen=True)
class Config:
    """One RAMba network (arXiv 2504.16795). Only sizes: every value here is honoured by the engine."""
    vocab_size: int = 8192
    d_model: int = 384
    n_lower_layers: int = 6
    n_upper_layers: int = 6
    expand: int = 2
    ssm_head_dim: int = 64
    ssm_state_size: int = 64
    conv_kernel: int = 4
    ssm_block: int = 128          # tokens per SSD block: a matter of speed, not of the result
    n_heads: int = 6
    n_kv_heads: int = 1           # the training form supports one K/V head
    chunk_size: int = 64          # S
    chunks_per_read: int = 8      # k
    landmark_dim: int = 256       # R
    encoder_layers: int = 1
    encoder_ffn: int = 1024
    hsa_every: int = 2
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    segment_size: int = 4096
    encoder_halo: int = 0         # tokens of the next chunk that the chunk encoder sees beside a chunk's own
    look_heads: int = 0           # heads of the second look at the chunks read; 0: none
    newest_margin: int = 0        # by which an older chunk must score better to weigh more than a newer one; 0: stick-breaking
    told_penalty: int = 0         # by which a chunk scores lower once an answer has told a value from it (told.py); 0: not at all

    @property
    def head_dim(self):
        return self.d_model // self.n_heads


def read_config(folder):
    """The Config of the bundle in `folder`."""
    values = json.loads((Path(folder) / 'config.json').read_text())
    return Config(**{f.name: values[f.name] for f in fields(Config) if f.name in values})


def write_config(config, folder):
    """Writes config.json: the sizes and the names of the special tokens."""
    values = {'model_type': 'ramba', **asdict(config), 'pad_token': DOCUMENT_TOKEN, 'question_token': QUESTION_TOKEN,
              'answer_token': ANSWER_TOKEN, 'document_token': DOCUMENT_TOKEN}
    if config.told_penalty:
        values['line_end_token'] = LINE_END_TOKEN
    (Path(folder) / 'config.json').write_text(json.dumps(values, indent=1) + '\n')
