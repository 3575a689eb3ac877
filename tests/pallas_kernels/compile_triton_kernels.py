"""Compiles every launch of the kernels for compute capabilities, on a machine without a GPU.

    python compile_triton_kernels.py 80 90

Prints a line a kernel: the capability, its name, the bytes of shared memory it takes, and its matrix instruction.
"""

import re
import sys
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import triton
from traced_anew import traced_anew
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_interpreter import jax_triton

from pallas_kernels import Dropout, device, lora_matmuls
from pallas_kernels.slot_updates import Half, Trained, Update, Visited
from pallas_kernels.table_decode import table_dense
from pallas_kernels.triton import tiles, updates

TYPES = {"bfloat16": "*bf16", "float32": "*fp32", "int32": "*i32", "uint32": "*u32", "uint8": "*u8"}


def main(capability: int) -> None:
    """Traces products with every launch compiled on the way: the one that takes most memory, for Hopper others too."""
    compiled: dict[tuple, list] = {}

    def call(*operands, kernel, out_shape, grid, num_warps, num_stages, input_output_aliases, **constants):
        pointers = dict(zip(kernel.arg_names, [*operands, *out_shape], strict=False))
        signature = {name: TYPES[str(one.dtype)] for name, one in pointers.items()}
        key = kernel.fn.__name__, num_warps, num_stages, *constants.items()
        if key not in compiled:
            attrs = {(at,): [["tt.divisibility", 16]] for at in range(len(pointers))}
            source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants, attrs)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            compiled[key] = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return [jnp.zeros(one.shape, one.dtype) for one in out_shape]

    def both(x, ws, adapters, dropout, dys):
        slots, scale = jnp.zeros(x.shape[0] // 128, jnp.int32), jnp.ones(2, jnp.float32)
        kind = {"dropout": dropout, "implementation": "triton"}
        ys, backward = jax.vjp(lambda x, adapters: lora_matmuls(x, ws, adapters, scale, slots, **kind), x, adapters)
        return ys, backward(dys)

    def like(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    def optimize(averages, stack):
        visited, one = Visited(jnp.ones(3, bool), jnp.ones(3, jnp.int32)), jnp.ones(3, jnp.float32)
        sums = updates.gathered(Half(stack, 1), stack, None, visited.which, visited)
        trained = Trained(stack, stack, stack, (stack,) * averages)
        update = Update(*[one] * 8, (one,) * averages)
        return updates.squares([Half(sums, 1)], None, visited), updates.adamw(trained, 1, sums, None, update, visited)

    with (
        traced_anew(),
        mock.patch.object(jax_triton, "triton_call", call, create=True),
        mock.patch.object(device, "multiprocessors", lambda: 108),
        mock.patch.object(tiles, "capability", lambda: f"{capability / 10:.1f}"),
    ):
        others = [(2048, 2048, 16, False), (580, 200, 64, False)] if capability == 90 else []
        for k, n, rank, drops in ((2048, 2048, 128, True), *others):
            adapters = [(like(2, k, rank, dtype=jnp.float32), like(2, rank, n, dtype=jnp.float32))]
            dropout = Dropout(like(2, dtype=jnp.float32), like(512, dtype=jnp.uint32)) if drops else None
            jax.eval_shape(both, like(512, k), [like(k, n)], adapters, dropout, (like(512, n),))
        if capability == 90:
            values, scale = like(128, 272, dtype=jnp.uint8), like(4, 272, dtype=jnp.float32)
            jax.eval_shape(table_dense, values, scale, like(16, dtype=jnp.float32))
        for averages in (0, 1) if capability == 90 else ():
            jax.eval_shape(partial(optimize, averages), like(2, 3, 580, 64, dtype=jnp.float32))
    for (name, *_), one in compiled.items():
        used = re.search(r"wgmma|mma\.sync", one.asm["ptx"])
        print(capability, name, one.metadata.shared, used[0] if used else "none")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        main(int(given))
