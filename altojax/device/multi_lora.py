"""Stacked adapters.

Every projection of the frozen base holds one adapter a slot, and a tile of the batch finds its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from jaxlm.devices.frozen_weight import dense
from jaxlm.devices.mesh import input_axis
from jaxlm.families.names import Projection
from jaxlm.models.layers import Linear
from jaxlm.models.transformer import Transformer
from pallas_kernels import Dropout, fitting, from_feature, lora_matmuls, token_keys


class LoRA(nnx.Variable):
    """A trained array of an adapter: float32, leading axes [layer, slot]."""


class Routing(NamedTuple):
    """The adapter of each token, with its scale and dropout. Passed through the transformer unchanged.

    Attributes:
        tile_slots: int32 [tiles], the slot of each of the equal tiles into which the tokens of all rows are cut.
        scale: float32 [slots].
        dropout_rate: float32 [slots], or None when nothing drops.
        token_seeds: uint32 [rows, length], by `pallas_kernels.token_seeds`, or None likewise.
    """

    tile_slots: Int[Array, " tiles"]
    scale: Float[Array, " slots"]
    dropout_rate: Float[Array, " slots"] | None = None
    token_seeds: UInt32[Array, "rows length"] | None = None


class MultiLoRALinear(nnx.Module):
    """A frozen projection with one adapter a slot (ALTO, "Batched multi-LoRA executor").

    Attributes:
        kernel: [layer, in, out] (inside the scan: [in, out]), the base's own Variable.
        bias: [layer, out] or None.
        lora_a: float32 [layer, slot, in, rank]; a slot of smaller rank has zero columns.
        lora_b: float32 [layer, slot, rank, out].
        salt: uint32 [layer], makes dropout masks of layers and inputs differ.
        shares_inputs: The mesh axis along which devices share out the input's features, or None.
    """

    def __init__(
        self,
        base: Linear,
        projection: Projection,
        *,
        layers: int,
        slots: int,
        rank: int,
        kernels: str | None,
        zeros: Callable[[str, tuple[int, ...]], Array],
        salt: Callable[[np.ndarray], Array],
        shares_inputs: str | None,
    ):
        """Wraps `base`; all slots start empty, which is the identity."""
        self.dtype, self.kernels, self.shares_inputs = base.dtype, kernels, shares_inputs
        self.kernel, self.bias = base.kernel, base.bias
        self.lora_a = LoRA(zeros("lora_a", (layers, slots, projection.in_features, rank)))
        self.lora_b = LoRA(zeros("lora_b", (layers, slots, rank, projection.out_features)))
        # Projections that read the same activations drop the same features of them.
        salts = np.array([crc32(f"{projection.reads} {layer}".encode()) for layer in range(layers)], np.uint32)
        self.salt = nnx.Variable(salt(salts))

    def __call__(
        self, x: Float[Array, "rows length in"], routing: Routing | None = None
    ) -> Float[Array, "rows length out"]:
        """Returns the base's projection, plus each token's own adapter when there is a routing."""
        return self.together([self], x, routing)[0]

    @staticmethod
    def together(
        layers: Sequence["MultiLoRALinear"], x: Float[Array, "rows length in"], routing: Routing | None
    ) -> tuple[Float[Array, "rows length out"], ...]:
        """Returns every layer's output for the same `x`; layers that read one input drop the same features of it."""
        rows, length, features = x.shape
        dtype = layers[0].dtype
        x = x.astype(dtype).reshape(rows * length, features)
        ws = [dense(layer.kernel.get_value(), dtype).astype(dtype) for layer in layers]
        if routing is None:
            ys = tuple(x @ w for w in ws)
        else:
            dropout = None
            if routing.dropout_rate is not None and routing.token_seeds is not None:
                keys = token_keys(routing.token_seeds, layers[0].salt[...]).reshape(-1)
                if (axis := layers[0].shares_inputs) is not None:
                    keys = from_feature(keys, jax.lax.axis_index(axis) * features)
                dropout = Dropout(routing.dropout_rate, keys)
            adapters = [(layer.lora_a[...], layer.lora_b[...]) for layer in layers]
            operands = [(x, w, a, routing.tile_slots.shape[0]) for w, (a, _) in zip(ws, adapters, strict=True)]
            # A row of one token is a step of generation, too short for any kernel's tile.
            kernels = "xla" if length == 1 else fitting(layers[0].kernels, *operands)
            ys = lora_matmuls(
                x, ws, adapters, routing.scale, routing.tile_slots, dropout=dropout, implementation=kernels
            )
        ys = tuple(
            y if layer.bias is None else y + layer.bias[...].astype(dtype)[None, :]
            for y, layer in zip(ys, layers, strict=True)
        )
        return tuple(y.reshape(rows, length, -1) for y in ys)


def adapt(
    model: Transformer,
    projections: dict[str, Projection],
    *,
    slots: int,
    rank: int,
    kernels: str | None = None,
    zeros: Callable[[str, str, tuple[int, ...]], Array] = lambda key, half, shape: jnp.zeros(shape, jnp.float32),
    salt: Callable[[np.ndarray], Array] = jnp.asarray,
) -> None:
    """Replaces, in place, each named projection of `model` by a `MultiLoRALinear` with empty slots.

    Args:
        model: The frozen base.
        projections: The projections that any trial adapts, by internal key (``self_attn.q_proj``).
        slots: Adapters that train at once.
        rank: The largest rank of any trial.
        kernels: Implementation of the adapter product, see `pallas_kernels`; None takes the fastest that fits.
        zeros: (projection, ``lora_a`` or ``lora_b``, shape) -> float32 zeros, where the run wants them.
        salt: Places the salts of dropout masks.
    """
    tensor = None if model.mesh_axes is None else model.mesh_axes.tensor
    for key, projection in projections.items():
        *parents, name = key.split(".")
        owner = model.layers
        for parent in parents:
            owner = getattr(owner, parent)
        base = getattr(owner, name)
        layers = model.config.num_layers
        adapted = MultiLoRALinear(
            base,
            projection,
            layers=layers,
            slots=slots,
            rank=rank,
            kernels=kernels,
            zeros=partial(zeros, key),
            salt=salt,
            shares_inputs=None if input_axis(key) is None else tensor,
        )
        setattr(owner, name, adapted)
