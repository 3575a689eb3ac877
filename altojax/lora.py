"""Stacked adapters.

Every projection of the frozen base holds one adapter a slot, and a row of the batch finds its own.
"""

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from backbone.layers import Linear
from backbone.names import Projection
from backbone.transformer import Transformer
from pallas_kernels import Dropout, fitting, lora_matmuls, token_keys

INPUT_OF = {
    "self_attn.q_proj": "attention input",
    "self_attn.k_proj": "attention input",
    "self_attn.v_proj": "attention input",
    "mlp.gate_proj": "mlp input",
    "mlp.up_proj": "mlp input",
}
"""Projections that read the same activations drop the same features of them; the others read their own."""


class LoRA(nnx.Variable):
    """A trained array of an adapter: float32, leading axes [layer, slot]."""


class Routing(NamedTuple):
    """Which adapter each row uses, and with what scale and dropout. Goes through the backbone untouched.

    Attributes:
        row_slots: int32 [rows].
        scale: float32 [slots].
        dropout_rate: float32 [slots], or None when nothing drops.
        row_keys: uint32 [rows], a key from (trial seed, step, row of the trial's batch), or None likewise.
    """

    row_slots: Int[Array, " rows"]
    scale: Float[Array, " slots"]
    dropout_rate: Float[Array, " slots"] | None = None
    row_keys: UInt32[Array, " rows"] | None = None


class MultiLoRALinear(nnx.Module):
    """A frozen projection with one adapter a slot (ALTO, "Batched multi-LoRA executor").

    Attributes:
        kernel: [layer, in, out] (inside the scan: [in, out]), the base's own Variable.
        bias: [layer, out] or None.
        lora_a: float32 [layer, slot, in, rank]; a slot of smaller rank has zero columns.
        lora_b: float32 [layer, slot, rank, out].
        salt: uint32 [layer], tells dropout masks of different layers and inputs apart.
    """

    def __init__(
        self, base: Linear, projection: Projection, *, layers: int, slots: int, rank: int, kernels: str | None
    ):
        """Wraps `base`; all slots start empty, which is the identity."""
        self.dtype, self.kernels = base.dtype, kernels
        self.kernel, self.bias = base.kernel, base.bias
        self.lora_a = LoRA(jnp.zeros((layers, slots, projection.in_features, rank), jnp.float32))
        self.lora_b = LoRA(jnp.zeros((layers, slots, rank, projection.out_features), jnp.float32))
        reads = INPUT_OF.get(projection.key, projection.key)
        self.salt = nnx.Variable(
            jnp.asarray(np.array([crc32(f"{reads} {layer}".encode()) for layer in range(layers)], np.uint32))
        )

    def __call__(
        self, x: Float[Array, "rows length in"], routing: Routing | None = None
    ) -> Float[Array, "rows length out"]:
        """Returns the base's projection, plus each row's own adapter when there is a routing."""
        return self.together([self], x, routing)[0]

    @staticmethod
    def together(
        layers: Sequence["MultiLoRALinear"], x: Float[Array, "rows length in"], routing: Routing | None
    ) -> tuple[Float[Array, "rows length out"], ...]:
        """Returns what every layer makes of the same `x`; layers that read one input drop the same features of it."""
        rows, length, features = x.shape
        dtype = layers[0].dtype
        x = x.astype(dtype).reshape(rows * length, features)
        ws = [layer.kernel[...].astype(dtype) for layer in layers]
        if routing is None:
            ys = tuple(x @ w for w in ws)
        else:
            dropout = None
            if routing.dropout_rate is not None and routing.row_keys is not None:
                keys = token_keys(routing.row_keys ^ layers[0].salt[...], length).reshape(-1)
                dropout = Dropout(routing.dropout_rate, keys)
            adapters = [(layer.lora_a[...], layer.lora_b[...]) for layer in layers]
            operands = [(x, w, a, rows) for w, (a, _) in zip(ws, adapters, strict=True)]
            # A row of one token is a step of generation, too short for any kernel's tile.
            kernels = "xla" if length == 1 else fitting(layers[0].kernels, *operands)
            ys = lora_matmuls(
                x, ws, adapters, routing.scale, routing.row_slots, dropout=dropout, implementation=kernels
            )
        ys = tuple(
            y if layer.bias is None else y + layer.bias[...].astype(dtype)[None, :]
            for y, layer in zip(ys, layers, strict=True)
        )
        return tuple(y.reshape(rows, length, -1) for y in ys)


def adapt(
    model: Transformer, projections: dict[str, Projection], *, slots: int, rank: int, kernels: str | None = None
) -> None:
    """Replaces, in place, each named projection of `model` by a `MultiLoRALinear` with empty slots.

    Args:
        model: The frozen base.
        projections: The projections that any trial adapts, by internal key (``self_attn.q_proj``).
        slots: Adapters that train at once.
        rank: The largest rank of any trial.
        kernels: Implementation of the adapter product, see `pallas_kernels`; None takes the fastest that fits.
    """
    for key, projection in projections.items():
        *parents, name = key.split(".")
        owner = model.layers
        for parent in parents:
            owner = getattr(owner, parent)
        base = getattr(owner, name)
        layers = model.config.num_layers
        setattr(owner, name, MultiLoRALinear(base, projection, layers=layers, slots=slots, rank=rank, kernels=kernels))
