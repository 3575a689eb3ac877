"""Entry point of the grouped adapter GEMM: chooses an implementation and collects why others were passed over."""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels import products, xla
from pallas_kernels.dropout import Dropout
from pallas_kernels.triton.tiles import capability
from pallas_kernels.triton.tiles import refusals as triton_refusals


class Implementation(NamedTuple):
    """One way to compute it.

    Attributes:
        lora_matmuls: As `lora_matmuls` below.
        device: Returns why this machine cannot run it, nothing if it can.
        operands: Returns why it does not take these (x, w, a, number of tiles), nothing if it does.
        skips: Whether it leaves out tiles whose slot is the number of slots.
    """

    lora_matmuls: Callable[..., tuple[Array, ...]]
    device: Callable[[], list[str]]
    operands: Callable[[Array, Array, Array, int], list[str]]
    skips: bool = False


def _hopper() -> list[str]:
    if reasons := _gpu("a Hopper GPU (compute capability 9.0)"):
        return reasons
    return [] if capability() == "9.0" else [f"compute capability {capability()}, expected 9.0 (Hopper)"]


def _triton() -> list[str]:
    if reasons := _gpu("an NVIDIA GPU (compute capability 8.0 or newer)"):
        return reasons
    try:
        enough = float(capability()) >= 8.0
    except ValueError:
        enough = False
    reasons = [] if enough else [f"compute capability {capability()}, expected 8.0 (Ampere) or newer"]
    if importlib.util.find_spec("jax_triton") is None:
        reasons.append("jax-triton is not installed, expected pip install 'altojax[gpu]'")
    return reasons


def _gpu(expected: str) -> list[str]:
    platform = jax.default_backend()
    return [] if platform == "gpu" else [f"this is a {platform.upper()}, expected {expected}"]


def _by_mosaic_gpu(*operands: Any, **named: Any) -> tuple[Array, ...]:
    # Takes half a second to import, which machines without a GPU save.
    from pallas_kernels.mosaic_gpu.lora import PASSES

    return products.lora_matmuls(PASSES, *operands, **named)


def _mosaic_gpu_refusals(x: Array, w: Array, a: Array, tiles: int) -> list[str]:
    from pallas_kernels.mosaic_gpu.lora import refusals

    return refusals(x, w, a, tiles)


def _by_triton(*operands: Any, **named: Any) -> tuple[Array, ...]:
    # Imports Triton, which is optional.
    from pallas_kernels.triton.lora import PASSES

    return products.lora_matmuls(PASSES, *operands, **named)


IMPLEMENTATIONS = {
    "mosaic_gpu": Implementation(_by_mosaic_gpu, _hopper, _mosaic_gpu_refusals, skips=True),
    "triton": Implementation(_by_triton, _triton, triton_refusals, skips=True),
    "xla": Implementation(xla.lora_matmuls, lambda: [], lambda *_: []),
}
"""Fastest first; the last one runs everywhere and takes everything."""


def lora_matmul(
    x: Float[Array, "tokens k"],
    w: Float[Array, "k n"],
    a: Float[Array, "slots k rank"],
    b: Float[Array, "slots rank n"],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    dropout: Dropout | None = None,
    implementation: str | None = None,
) -> Float[Array, "tokens n"]:
    """Returns Y = X·W + scale_g · (drop(X)·A_g)·B_g with the slot g looked up per row tile.

    Differentiable in x, a and b; w is frozen. Products accumulate in float32. A trial of rank r < rank uses the first r
    columns of A and rows of B; the rest are zero and stay zero under any gradient.

    Args:
        x: [tokens, k] activations, float32 or bfloat16. tokens is a multiple of the number of tiles.
        w: [k, n] frozen base weight, the dtype of x.
        a: [slots, k, rank] float32 or the dtype of x.
        b: [slots, rank, n] likewise.
        scale: float32 [slots], alpha / rank (or alpha / sqrt(rank)).
        tile_slots: int32 [tiles], the slot that owns each run of tokens / tiles rows. Whether they are slots is checked
            outside of `jax.jit` alone, which knows no values.
        dropout: Drops features of the adapter's input, never of the base's; None for none.
        implementation: One of `IMPLEMENTATIONS`, or None to take the fastest that fits this device and these operands.

    Raises:
        ValueError: The implementation is unknown or does not take these operands, shapes or dtypes do not fit together,
            or a tile is of no slot.
    """
    return lora_matmuls(x, [w], [(a, b)], scale, tile_slots, dropout=dropout, implementation=implementation)[0]


def lora_matmuls(
    x: Float[Array, "tokens k"],
    ws: Sequence[Float[Array, "k n"]],
    adapters: Sequence[tuple[Float[Array, "slots k rank"], Float[Array, "slots rank n"]]],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    live: Int[Array, ""] | None = None,
    dropout: Dropout | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "tokens n"], ...]:
    """Returns what `lora_matmul` does for several projections of one X, which then share the passes over it.

    Args:
        x: As for `lora_matmul`; so are the others.
        ws: One frozen weight a projection, of any widths n.
        adapters: Its A and B.
        scale: The same for all projections.
        tile_slots: Likewise.
        live: int32, the tiles before those that are padding, which may be left out: what their rows of Y and of its
            gradient are nobody may read, and they add nothing to gradients of A and B. None where none are.
        dropout: Drops the same features for all projections.
        implementation: Likewise; the fastest that takes all of them.

    Raises:
        ValueError: The implementation is unknown or does not take these operands, shapes or dtypes do not fit together,
            or a tile is of no slot.
    """
    for w, (a, b) in zip(ws, adapters, strict=True):
        _check_operands(x, w, a, b, scale)
    _check_slots(x.shape[0], tile_slots, scale.shape[0])
    if dropout is not None and (dropout.rate.shape != scale.shape or dropout.token_keys.shape != x.shape[:1]):
        raise ValueError(f"shapes do not fit: rate {dropout.rate.shape}, keys {dropout.token_keys.shape}, x {x.shape}")
    tiles = tile_slots.shape[0]
    operands = [(x, w, a, tiles) for w, (a, _) in zip(ws, adapters, strict=True)]
    if implementation is None:
        implementation = fitting(None, *operands)
    elif implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation '{implementation}' is not one of {', '.join(IMPLEMENTATIONS)}")
    elif reasons := _refusals(IMPLEMENTATIONS[implementation], operands):
        raise ValueError(f"{implementation} does not take these operands: {'; '.join(reasons)}")
    chosen = IMPLEMENTATIONS[implementation]
    if live is not None and chosen.skips:
        tile_slots = jnp.where(jnp.arange(tiles, dtype=jnp.int32) < live, tile_slots, jnp.int32(scale.shape[0]))
    return chosen.lora_matmuls(x, ws, adapters, scale, tile_slots, dropout=dropout)


def _check_operands(x: Array, w: Array, a: Array, b: Array, scale: Array) -> None:
    """Refuses what promotion or broadcasting would turn into another product.

    Raises:
        ValueError: Shapes do not fit together, or a dtype is not as `lora_matmul` says.
    """
    ranks = [one.ndim for one in (x, w, a, b, scale)]
    fits = ranks == [2, 2, 3, 3, 1] and x.shape[1] == w.shape[0] == a.shape[1] and w.shape[1] == b.shape[2]
    if not fits or a.shape[::2] != b.shape[:2] or scale.shape != a.shape[:1]:
        raise ValueError(
            f"shapes do not fit: x {x.shape}, w {w.shape}, a {a.shape}, b {b.shape}, scale {scale.shape}, "
            "expected [tokens, k], [k, n], [slots, k, rank], [slots, rank, n], [slots]"
        )
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}, expected float32 or bfloat16")
    if w.dtype != x.dtype:
        raise ValueError(f"w is {w.dtype}, expected {x.dtype} as x is")
    expected = "float32" if x.dtype == jnp.float32 else f"float32, or {x.dtype} as x is"
    for name, one in (("a", a), ("b", b)):
        if one.dtype not in (jnp.float32, x.dtype):
            raise ValueError(f"{name} is {one.dtype}, expected {expected}")
    if scale.dtype != jnp.float32:
        raise ValueError(f"scale is {scale.dtype}, expected float32")


def _check_slots(tokens: int, tile_slots: Array, slots: int) -> None:
    """Refuses rows without an owner; what a traced array holds, or one of other processes, is not known.

    Raises:
        ValueError: Tiles are not equal, or one is of no slot.
    """
    if tile_slots.ndim != 1 or tile_slots.dtype != jnp.int32:
        raise ValueError(f"tile_slots is {tile_slots.dtype} {tile_slots.shape}, expected int32 [tiles]")
    if not tile_slots.size or tokens % tile_slots.size:
        raise ValueError(f"{tokens} tokens cannot be cut into {tile_slots.size} equal tiles")
    if isinstance(tile_slots, jax.core.Tracer) or not getattr(tile_slots, "is_fully_addressable", True):
        return
    named = np.asarray(tile_slots)  # a constant may be met inside of a trace, where jax.numpy would trace its minimum
    low, high = int(named.min()), int(named.max())
    if low < 0 or high >= slots:
        raise ValueError(f"tile_slots names slot {low if low < 0 else high}, expected 0 to {slots - 1}")


def choose() -> tuple[str, list[str]]:
    """Returns the implementation that is preferred on this machine, and why each faster one was passed over."""
    passed_over: list[str] = []
    for name, one in IMPLEMENTATIONS.items():
        reasons = one.device()
        if not reasons:
            return name, passed_over
        passed_over.append(f"{name}: {'; '.join(reasons)}")
    raise AssertionError("the last implementation runs everywhere")


def skips_padding(wanted: str | None) -> bool:
    """Whether an implementation, or the fastest that runs here, leaves out tiles that are padding."""
    names = [name for name, one in IMPLEMENTATIONS.items() if not one.device()]
    return IMPLEMENTATIONS[wanted or names[0]].skips


def fitting(wanted: str | None, *operands: tuple[Array, Array, Array, int]) -> str:
    """Returns the implementation that is wanted, or the fastest; a slower one where that does not take the operands.

    It warns the first time it gives way for a reason.

    Args:
        wanted: One of `IMPLEMENTATIONS`, or None for any that runs here.
        *operands: x, w, a and the length of `tile_slots` of every projection; only shapes and types matter.
    """
    names = list(IMPLEMENTATIONS)
    for name in names if wanted is None else names[names.index(wanted) :]:
        one = IMPLEMENTATIONS[name]
        if name != wanted and one.device():
            continue
        reasons = _refusals(one, operands)
        if not reasons:
            return name
        _warn_of_slow(name, tuple(reasons))
    raise AssertionError("the last implementation takes everything")


def _refusals(one: Implementation, operands: Sequence[tuple[Array, Array, Array, int]]) -> list[str]:
    return list(dict.fromkeys(reason for each in operands for reason in one.operands(*each)))


@functools.cache
def _warn_of_slow(name: str, reasons: tuple[str, ...]) -> None:
    warnings.warn(f"adapters run slower than they could: {name} does not take {'; '.join(reasons)}", stacklevel=5)
