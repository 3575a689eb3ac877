"""Mosaic GPU kernels on a CPU, through JAX's interpreter of a GPU's memories, threads and barriers."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret import shared_memory as memory
from traced_anew import traced_anew

from pallas_kernels import device


@contextlib.contextmanager
def simulated_gpu(multiprocessors: int, *, detect_races: bool = False) -> Iterator[None]:
    """Interprets Mosaic GPU kernels as on a GPU of so many multiprocessors.

    The interpreter has no semaphores, so kernels that signal between thread blocks run on one multiprocessor only; and
    no products whose left operand is in registers, which `_product` adds.
    """
    params = plgpu.InterpretGPUParams(detect_races=detect_races)
    with (
        traced_anew(),
        mock.patch.object(device, "multiprocessors", lambda: multiprocessors),
        mock.patch.object(gpu_callbacks, "wgmma", _product),
        plgpu.force_gpu_interpret_mode(params),
    ):
        try:
            yield
        except BaseException:
            interpret_pallas_call.reset_gpu_interpret_mode_state()
            raise


_product_of_buffers = gpu_callbacks.wgmma


@gpu_callbacks.fail_on_exception
def _product(**arguments):
    left = arguments["a_allocation_key_as_array"]
    if left.ndim != 2:
        return _product_of_buffers(**arguments)
    shared = gpu_callbacks._get_shared_memory()
    thread = arguments["thread"]
    logging_info = memory.GPULoggingInfo(arguments["mesh_location"], thread, arguments["source_info"])

    def access(name):
        key = gpu_callbacks.HostAllocationKey.from_array(arguments[f"{name}_allocation_key_as_array"])
        transforms = gpu_callbacks._remove_noop_transforms(arguments[f"{name}_transforms"])
        return key, shared.access(key, jax.tree.map(int, transforms))

    (right, right_range), (acc, acc_range) = access("b"), access("acc")
    content = [
        shared.get_buffer_content(key, part, thread, logging_info=logging_info)[0]
        for key, part in ((right, right_range), (acc, acc_range))
    ]
    total = content[1] + np.matmul(np.asarray(left, np.float32), content[0].astype(np.float32))
    shared.store_buffer_content(acc, acc_range, total, thread, logging_info=logging_info)
    return arguments["token"]
