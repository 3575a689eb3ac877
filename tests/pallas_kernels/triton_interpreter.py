"""Triton kernels on a CPU, through Triton's own interpreter, where jax-triton would launch them."""

import contextlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import triton.language as tl
from traced_anew import traced_anew
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from pallas_kernels import device

try:
    import jax_triton
except ImportError:  # It wants a JAX that is built for GPUs.
    jax_triton = types.ModuleType("jax_triton")
    jax_triton.__spec__ = importlib.machinery.ModuleSpec("jax_triton", None)
    sys.modules["jax_triton"] = jax_triton


@contextlib.contextmanager
def simulated_ampere(multiprocessors: int) -> Iterator[None]:
    """Interprets Triton kernels as on a GPU of so many multiprocessors; outputs are full of NaN before.

    The interpreter multiplies the bits of bfloat16 as integers, and cuts float32 off where GPUs round; `_dot` and
    `_convert` put that right.
    """
    with (
        traced_anew(),
        mock.patch.object(InterpreterBuilder, "create_dot", _dot),
        mock.patch.object(interpreter, "_convert_float", _convert),
        mock.patch.object(device, "multiprocessors", lambda: multiprocessors),
        mock.patch.object(jax_triton, "triton_call", _call, create=True),
    ):
        yield


def _call(*operands, kernel, out_shape, grid, num_warps, num_stages, input_output_aliases, **constants):
    assert num_warps in (4, 8) and num_stages > 0

    def run(*arrays):
        arrays = [np.array(one, order="C") for one in arrays]  # each in memory that may be written
        places = {output: arrays[operand] for operand, output in input_output_aliases.items()}
        outputs = [places.get(at, np.full(one.shape, np.nan, one.dtype)) for at, one in enumerate(out_shape)]
        pointers = [_Pointer(one) for one in arrays]
        _Executor(kernel.fn, kernel.arg_names, grid)(*pointers, *map(_Pointer, outputs), **constants)
        return outputs

    return jax.pure_callback(run, out_shape, *operands)


_convert_of_others = interpreter._convert_float


def _convert(data, given, wanted, rounding):
    if (given, wanted, rounding) != (tl.float32, tl.bfloat16, None):
        return _convert_of_others(data, given, wanted, rounding)
    return data.astype(ml_dtypes.bfloat16).view(np.uint16)


_dot_of_others = InterpreterBuilder.create_dot


def _dot(self, a, b, d, *options):
    return _dot_of_others(self, *map(_widened, (a, b)), d, *options)


def _widened(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)


class _Pointer:
    """An array as the interpreter wants a tensor."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self):
        return self.array.ctypes.data


class _Executor(GridExecutor):
    """Its arguments lie on the host already."""

    def _init_args_hst(self, args_dev, kwargs):
        return args_dev, kwargs

    def _restore_args_dev(self, args_dev, args_hst, kwargs, kwargs_hst):
        del args_dev, args_hst, kwargs, kwargs_hst
