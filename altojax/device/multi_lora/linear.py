"""Adapted projections."""

from collections.abc import Callable, Sequence
from zlib import crc32

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from altojax.device.multi_lora.routing import LoRA, Routing
from jaxlm.devices.frozen_weight import dense
from jaxlm.families.names import Projection
from jaxlm.models.layers import Linear
from pallas_kernels import Dropout, fitting, from_feature, lora_matmuls, token_keys


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
        self.lora_a = LoRA(zeros("lora_a", (len(projection.layers), slots, projection.in_features, rank)))
        self.lora_b = LoRA(zeros("lora_b", (len(projection.layers), slots, rank, projection.out_features)))
        # Projections that read the same activations drop the same features of them.
        salts = np.array([crc32(f"{projection.reads} {layer}".encode()) for layer in projection.layers], np.uint32)
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
                x,
                ws,
                adapters,
                routing.scale,
                routing.tile_slots,
                live=routing.live,
                dropout=dropout,
                implementation=kernels,
            )
        ys = tuple(
            y if layer.bias is None else y + layer.bias[...].astype(dtype)[None, :]
            for y, layer in zip(ys, layers, strict=True)
        )
        return tuple(y.reshape(rows, length, -1) for y in ys)
