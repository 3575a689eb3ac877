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


def test_parts_are_gathered_once_and_turned_where_they_lie_side_by_side():
    """Along another axis than the first: what is sent, what comes, and that in the order of other arrays."""

    def gathered(axis, times=1):
        def function(part):
            wholes = [jax.lax.all_gather(part, "devices", axis=axis, tiled=True) for _ in range(times)]
            return sum(kernel(whole).sum() for whole in wholes)

        mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        parts, nothing = jax.P(*[None] * axis, "devices"), jax.P()
        mapped = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=nothing, check_vma=False)
        return temporary(mapped, (64, 64))

    whole = 4 * 64 * 64
    assert gathered(0) == 2 * whole
    assert gathered(1) == whole // 4 + 2 * whole
    assert gathered(1, times=2) < 1.01 * (2 * whole + whole // 4)
