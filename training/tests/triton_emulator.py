"""Enough of Triton, in numpy, to run this folder's kernels on a machine without a GPU: one program after the other, all values in float32,
rounded to bfloat16 where a kernel asks for its inputs' type and these are bfloat16.

Knows what the kernels use and no more. What a kernel computes can be tested with it; that the compiler takes it, and how fast it is, cannot."""
import contextlib
import itertools
import sys
import types

import numpy as np

_program = (0, 0, 0)
_rounding = False               # of values that are cast to a loaded value's type


def rounded(values):
    """To bfloat16 and back, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


class Tensor(np.ndarray):
    """What tl.load and tl.arange return."""

    def to(self, kind):
        named = isinstance(kind, str)            # tl.float32 or tl.int64; else the type of a loaded value
        return self if named or not _rounding else tensor(rounded(self))


def tensor(values):
    return np.asarray(values).view(Tensor)


class Pointer:
    """Into a torch tensor's storage; `at` may be an array of offsets."""

    def __init__(self, storage, at=0):
        self.storage, self.at = storage, at

    def __add__(self, offset):
        return Pointer(self.storage, self.at + np.asarray(offset).astype(np.int64))

    def __sub__(self, offset):
        return self + -np.asarray(offset)

    @staticmethod
    def to_tensor(t):
        import torch
        flat = t.detach().as_strided((t.storage().size(),), (1,), 0)
        flat = flat.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else flat.numpy()
        return Pointer(flat, t.storage_offset())

    def read(self, at):
        values = self.storage[at]
        return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values

    def write(self, at, values):
        self.storage[at] = rounded(values).view(np.uint32) >> 16 if self.storage.dtype == np.uint16 else values


def load(pointer, mask=None, other=None):
    at = np.asarray(pointer.at)
    if mask is None:
        return tensor(pointer.read(at))
    mask, at = np.broadcast_arrays(np.asarray(mask), at)
    assert other is not None, 'what a masked load returns elsewhere is undefined without other='
    values = pointer.read(np.where(mask, at, 0))
    return tensor(np.where(mask, values, np.asarray(other, values.dtype)))


def store(pointer, values, mask=None):
    at = np.asarray(pointer.at)
    values = np.broadcast_to(np.asarray(values), at.shape)
    chosen = np.ones(at.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask), at.shape)
    assert len(np.unique(at[chosen])) == chosen.sum(), 'two elements of one store at one address'
    pointer.write(at[chosen], values[chosen])


def dot(a, b, acc=None):
    assert a.ndim == b.ndim == 2 and min(*a.shape, *b.shape) >= 16, (a.shape, b.shape)
    product = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
    return tensor(product if acc is None else acc + product)


class Kernel:
    """kernel[grid](arguments): torch tensors become pointers, the rest is passed on. Kernels call one another as functions."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __getitem__(self, grid):
        def launch(*arguments, num_warps=4, num_stages=1, **constants):
            global _program, _rounding
            import torch
            _rounding = any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in arguments)
            given = [Pointer.to_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            for _program in itertools.product(*(range(n) for n in (*grid, 1, 1)[:3])):
                self.function(*given, **constants)
        return launch


def module():
    """-> (triton, triton.language) as modules."""
    language = types.ModuleType('triton.language')
    language.constexpr, language.float32, language.int64 = object, 'float32', 'int64'
    language.program_id = lambda axis: tensor(_program[axis])
    language.arange = lambda begin, end: tensor(np.arange(begin, end))
    language.zeros = lambda shape, dtype: tensor(np.zeros(shape, np.float32))
    language.load, language.store, language.dot = load, store, dot
    language.trans = lambda a: a.T
    language.exp = lambda a: tensor(np.exp(a))
    language.sigmoid = lambda a: tensor(1 / (1 + np.exp(-a)))
    language.sum = lambda a, axis: tensor(np.sum(a, axis))
    language.max = lambda a, axis: tensor(np.max(a, axis))
    language.where = lambda c, a, b: tensor(np.where(c, a, b))
    language.minimum = lambda a, b: tensor(np.minimum(a, b))
    language.reshape = lambda a, shape: a.reshape(shape)
    language.static_range = range
    triton = types.ModuleType('triton')
    triton.jit, triton.language = Kernel, language
    return triton, language


@contextlib.contextmanager
def instead_of_triton():
    """Whatever imports triton meanwhile gets this."""
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'triton'}
    sys.modules['triton'], sys.modules['triton.language'] = module()
    try:
        yield
    finally:
        del sys.modules['triton'], sys.modules['triton.language']
        sys.modules.update(real)
