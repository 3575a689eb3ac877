"""The one entry to the grouped adapter GEMM: chooses an implementation and says why others were passed over."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from pallas_kernels import xla
from pallas_kernels.dropout import Dropout

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": xla.lora_matmul}


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
        tile_slots: int32 [tiles], the slot that owns each run of tokens / tiles rows.
        dropout: Drops features of the adapter's input, never of the base's; None for none.
        implementation: One of `IMPLEMENTATIONS`, or None to take the fastest that fits this device.

    Raises:
        ValueError: The implementation is unknown, or shapes do not fit together.
    """
    tokens, k = x.shape
    if tokens % tile_slots.shape[0]:
        raise ValueError(f"{tokens} tokens cannot be cut into {tile_slots.shape[0]} equal tiles")
    if a.shape[1] != k or w.shape[0] != k or b.shape[2] != w.shape[1] or a.shape[::2] != b.shape[:2]:
        raise ValueError(f"shapes do not fit: x {x.shape}, w {w.shape}, a {a.shape}, b {b.shape}")
    if scale.shape != a.shape[:1]:
        raise ValueError(f"shapes do not fit: scale {scale.shape}, a {a.shape}")
    if dropout is not None and (dropout.rate.shape != scale.shape or dropout.token_keys.shape != (tokens,)):
        raise ValueError(f"shapes do not fit: rate {dropout.rate.shape}, keys {dropout.token_keys.shape}, x {x.shape}")
    name = implementation or choose()[0]
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation '{name}' is not one of {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name](x, w, a, b, scale, tile_slots, dropout=dropout)


def choose() -> tuple[str, list[str]]:
    """Returns the implementation used by default on this machine, and one reason for each faster one passed over."""
    return "xla", []
