"""Data for a training machine that cannot be given all of it: a prepared folder cut down to so many bytes, compressed.

Usage: python3 -m training.pack PREPARED EVAL_FOLDER OUT_FOLDER [--bytes 40000000] [--other FILE ...]
       python3 -m training.pack --unpack PACKED PREPARED EVAL_FOLDER
EVAL_FOLDER: books/*.txt and NAME.jsonl (.zst, .xz); --other: text of other kinds, for evaluate --other. Writes prepared.tar.xz (tokenizer,
word lists, questions; as many of the tokens, whole documents from the beginning, as the bytes allow) and eval.tar.xz.
training/unattended.sh unpacks them."""
import argparse
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np

PRESET = 6 | lzma.PRESET_EXTREME


def archive(path, entries):
    """entries: [(name, file or bytes)] -> .tar.xz; returns its size."""
    with tarfile.open(path, 'w:xz', preset=PRESET) as tar:
        for name, content in entries:
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.add(content, name)
    return Path(path).stat().st_size


def array_file(array):
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pack(prepared, eval_folder, out, bytes_max, other=()):
    prepared, eval_folder, out = Path(prepared), Path(eval_folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    books = [(f'books/{p.name}', p) for p in sorted((eval_folder / 'books').glob('*.txt'))]
    sets = [(p.name, p) for p in sorted(eval_folder.glob('*.jsonl*'))]
    used = archive(out / 'eval.tar.xz', books + sets + [(f'other/{Path(p).name}', p) for p in other])
    used += archive(out / 'prepared.tar.xz', [(n, prepared / n) for n in ('tokenizer.model', 'lexicon.json', 'questions.jsonl')])
    tokens, documents = np.load(prepared / 'tokens.npy', mmap_mode='r'), np.load(prepared / 'documents.npy')
    sample = np.asarray(tokens[:2_000_000])
    count = int((bytes_max - used) * len(sample) / len(lzma.compress(array_file(sample), preset=PRESET)))
    kept = int(np.searchsorted(documents, min(count, len(tokens)), side='right')) - 1
    ends = documents[:kept + 1] if kept else np.array([0, count])      # the first alone is too long: its beginning
    (out / 'tokens.npy.xz').write_bytes(lzma.compress(array_file(np.asarray(tokens[:ends[-1]])), preset=PRESET))
    (out / 'documents.npy').write_bytes(array_file(ends))
    return int(ends[-1]), used + (out / 'tokens.npy.xz').stat().st_size


def unpack(packed, prepared, eval_folder):
    packed, prepared = Path(packed), Path(prepared)
    for name, folder in (('prepared.tar.xz', prepared), ('eval.tar.xz', eval_folder)):
        with tarfile.open(packed / name) as tar:
            tar.extractall(folder)
    (prepared / 'tokens.npy').write_bytes(lzma.decompress((packed / 'tokens.npy.xz').read_bytes()))
    (prepared / 'documents.npy').write_bytes((packed / 'documents.npy').read_bytes())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--unpack', action='store_true', help='the other way: PACKED PREPARED EVAL_FOLDER')
    parser.add_argument('prepared')
    parser.add_argument('eval_folder')
    parser.add_argument('out')
    parser.add_argument('--bytes', type=int, default=40_000_000)
    parser.add_argument('--other', nargs='*', default=[])
    args = parser.parse_args()
    if args.unpack:
        unpack(args.prepared, args.eval_folder, args.out)
        raise SystemExit
    kept_tokens, size = pack(args.prepared, args.eval_folder, args.out, args.bytes, args.other)
    print(f'{kept_tokens} tokens, {size} bytes in {args.out}')
