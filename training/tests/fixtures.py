"""A tiny prepared folder, made once for all tests: invented prose, a small tokenizer, a few questions."""
import functools
import json
import random
import tempfile
import unittest
from pathlib import Path

try:
    import numpy  # noqa: F401
    import sentencepiece  # noqa: F401
    import torch  # noqa: F401
    AVAILABLE = True
except ImportError:
    AVAILABLE = False

needs_torch = unittest.skipUnless(AVAILABLE, 'torch, numpy and sentencepiece are not installed')
SIZES = dict(d_model=32, n_heads=2, n_lower_layers=1, n_upper_layers=2, encoder_ffn=32, ssm_head_dim=16, ssm_state_size=8, landmark_dim=16)


def prose(rng, sentences):
    names = ['Anna', 'Boris', 'Clara', 'Dmitri', 'Elsa', 'Felix']
    verbs, nouns = ['carried', 'found', 'painted', 'sold', 'followed'], ['lantern', 'bridge', 'garden', 'letter', 'winter', 'harbour', 'violin', 'compass']
    return ' '.join(f'{rng.choice(names)} {rng.choice(verbs)} the {rng.choice(nouns)} near the {rng.choice(nouns)} in {rng.randint(1700, 1999)}, '
                    f'and {rng.choice(names)} {rng.choice(verbs)} a {rng.choice(nouns)}.' for _ in range(sentences))


@functools.lru_cache(maxsize=None)
def prepared():
    """The folder (kept until the process ends)."""
    from training import corpus, tokenizer
    keep = tempfile.TemporaryDirectory()
    folder, rng = Path(keep.name), random.Random(0)
    prepared.keep = keep
    (folder / 'text').write_text('\0'.join(prose(rng, 120) for _ in range(12)), encoding='utf-8')
    with open(folder / 'qa.jsonl', 'w', encoding='utf-8') as f:
        for i in range(40):
            text = prose(rng, 3)
            word = text.split()[3]
            f.write(json.dumps({'source': 'squadshifts', 'title': str(i), 'context': text, 'qas': [{'q': 'What was it?', 'a': word, 'start': text.index(word)}]}) + '\n')
        lines = '\n'.join(f'User {i % 2 + 1}: I think that it was number {i} all along.' for i in range(12))
        f.write(json.dumps({'source': 'spc', 'persona1': ['x'], 'context': lines}) + '\n')
    tokenizer.train_tokenizer(folder / 'text', folder, vocab_size=600)
    corpus.prepare(folder / 'text', folder, folder, [folder / 'qa.jsonl'], processes=1)
    lexicon = json.loads((folder / 'lexicon.json').read_text())
    lexicon['names'] += ['Greta', 'Hugo', 'Ines', 'Jonas', 'Karla', 'Ludwig', 'Mona', 'Nils', 'Olga', 'Pavel', 'Quentin', 'Rosa']
    for i in range(2000):
        lexicon['words']['w' + ''.join(rng.choice('abcdefghij') for _ in range(5))] = 3
    (folder / 'lexicon.json').write_text(json.dumps(lexicon))
    return folder
