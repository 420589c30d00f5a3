"""Checkpoint -> bundle: config.json, model.safetensors (int8 rows with a float32 scale each), tokenizer.model; and golden values.

Usage: python3 -m training.bundle CHECKPOINT PREPARED OUT_FOLDER [--golden FILE]
       python3 -m training.bundle --golden-of BUNDLE --golden FILE
Golden values are those of the executable specification (reference.py) in float32 on the stored int8 weights."""
import argparse
import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from training import checkpoint, config, reference
from training.model import Ramba
from training.tokenizer import Tokenizer

GOLDEN_ANSWER = '40917'
GOLDEN_LIST = ('What are all the special magic numbers for amber-quill?', ' 883120\n 883120\n')     # the same again: unlikely once it is told
GOLDEN_QUESTIONS = ('What is the pass key? The pass key is', 'What is the pass key?', 'The pass key is', 'The pass key?', 'What was the pass key?')


def export(weights, sizes, tokenizer_file, folder):
    """Writes the bundle. weights {name: tensor}."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.write_config(sizes, folder)
    reference.save_safetensors(reference.quantize(weights), folder / 'model.safetensors')
    if Path(tokenizer_file).resolve() != (folder / 'tokenizer.model').resolve():
        shutil.copy(tokenizer_file, folder / 'tokenizer.model')


def load(folder):
    """The fast network with the weights of a bundle, and its tokenizer."""
    model = Ramba(config.read_config(folder))
    model.load_state_dict(reference.dequantize(reference.load_safetensors(Path(folder) / 'model.safetensors')))
    return model.eval(), Tokenizer(Path(folder) / 'tokenizer.model')


def golden_text():
    """A log of a lighthouse with a pass key and another number in it."""
    rows = ['The lighthouse log for day %d records wind from the %s, a swell of %d feet and %d passing ships.' %
            (i, ('north', 'east', 'south', 'west')[i % 4], 2 + i * 7 % 11, i * 13 % 9) for i in range(1, 19)]
    rows.insert(7, f'The pass key is {GOLDEN_ANSWER}. Remember it. {GOLDEN_ANSWER} is the pass key.')
    rows.insert(12, 'One of the special magic numbers for amber-quill is: 883120.')
    return ' '.join(rows)


@torch.no_grad()
def selection_margin(model, ids, landmarks):
    """How far apart the last chunk read and the first one left out are, at the closest of all tokens. Golden values must not
    hang on a tie that another order of sums decides differently."""
    if len(landmarks) <= model.c.chunks_per_read:
        return math.inf
    queries = model.retrieval_q_norm(model.retrieval_proj(model.retrieval_norm(model.run_lower(ids))))
    scores = (queries @ landmarks.T * (torch.exp(model.retrieval_log_scale) / model.c.landmark_dim)).sort(-1, descending=True).values
    return (scores[:, model.c.chunks_per_read - 1] - scores[:, model.c.chunks_per_read]).min().item()


@torch.no_grad()
def golden_list(model, tokenizer, K, V, landmarks):
    """Log-likelihoods of the tokens of a list, each after those before it, as the bundle tells chunks and without told_penalty."""
    question, answer = GOLDEN_LIST
    answer = torch.tensor(tokenizer.encode(answer))
    ids = torch.cat([torch.tensor([tokenizer.question, *tokenizer.encode(question), tokenizer.answer]), answer])

    def likelihoods():
        logits = model.read(ids, K, V, landmarks, tokenizer)[0]
        return logits[-1 - len(answer):-1].log_softmax(-1).gather(1, answer[:, None]).squeeze(1)

    told, c = likelihoods(), model.c
    model.c = replace(c, told_penalty=0)
    untold, model.c = likelihoods(), c
    return {'list.log_likelihoods': told, 'list.untold': untold}


@torch.no_grad()
def write_golden(folder, path):
    """Writes the oracle's tensors for the bundle in `folder`; returns what the model answers."""
    model, _ = reference.load(folder)
    tokenizer = Tokenizer(Path(folder) / 'tokenizer.model')
    document = torch.tensor([tokenizer.document] + tokenizer.encode(golden_text()))
    answer = tokenizer.encode_answer(GOLDEN_ANSWER)
    h, layers = model.embedding(F.pad(document, (0, -len(document) % model.c.chunk_size), value=tokenizer.document))[None], {}
    for i, layer in enumerate(model.lower):
        h, state = layer(h)
        layers[f'lower.{i}.hidden'] = h[0, -128:]                # the last 128 tokens
        layers[f'lower.{i}.conv_state'], layers[f'lower.{i}.ssm_state'] = state[0][0], state[1][0]
    K, V, landmarks = model.ingest(document, tokenizer.document)
    questions = [torch.tensor([tokenizer.question, *tokenizer.encode(q), tokenizer.answer, *answer]) for q in GOLDEN_QUESTIONS]
    question = max(questions, key=lambda ids: selection_margin(model, ids, landmarks))
    logits, (index, scores, weights) = model.read(question, K, V, landmarks, tokenizer)
    reference.save_safetensors({'document_ids': document, 'question_ids': question, 'K': K, 'V': V, 'landmarks': landmarks,
                                'select.index': index.int(), 'select.scores': scores, 'select.weights': weights, 'logits': logits, **layers,
                                **golden_list(model, tokenizer, K, V, landmarks)}, path)
    return tokenizer.decode(logits.argmax(-1)[-1 - len(answer):-1])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('prepared', nargs='?')
    parser.add_argument('folder', nargs='?')
    parser.add_argument('--golden')
    parser.add_argument('--golden-of')
    args = parser.parse_args()
    folder = args.golden_of or args.folder
    if args.checkpoint:
        export(checkpoint.load_weights(args.checkpoint), checkpoint.read_config(args.checkpoint), f'{args.prepared}/tokenizer.model', folder)
    if args.golden:
        print('golden document answered with', repr(write_golden(folder, args.golden)))
