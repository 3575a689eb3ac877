"""A program's memory read off its jaxpr: results of kernels count, fused element-wise ones do not."""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxlm.devices.program_memory import usage


@custom_vmap
def kernel(x):
    return 2 * x


@kernel.def_vmap
def kernels(size, batched, x):
    return kernel(x), True


def temporary(function, *shapes):
    program = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return usage(program, [False] * len(shapes)).temporary


def test_what_a_kernel_makes_lies_in_memory_though_it_is_only_summed():
    assert temporary(lambda x: kernel(x + 1).sum(), (64, 64)) == 2 * 4 * 64 * 64


def test_what_is_made_element_by_element_takes_no_memory_where_it_is_summed():
    assert temporary(lambda x: (2 * (x + 1)).sum(), (64, 64)) == 4
