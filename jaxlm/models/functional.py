"""A `Transformer` as a pure function of its weights, which are a dict by path."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxlm.devices.frozen_weight import all_dense
from jaxlm.families.config import ModelConfig
from jaxlm.models.transformer import Transformer


class Functional:
    """The structure of a model without weights.

    Attributes:
        config: Shapes and switches.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.float32, remat: str = "none", scan_layers: bool = True
    ):
        """Traces the model's shapes; nothing is allocated. Arguments as of `Transformer`."""
        self.config = config

        def build() -> Transformer:
            return Transformer(
                config, dtype=dtype, param_dtype=jnp.float32, remat=remat, scan_layers=scan_layers, rngs=nnx.Rngs(0)
            )

        self._graph, state = nnx.split(nnx.eval_shape(build))
        self._variables: dict[str, Any] = {_name(path): variable for path, variable in nnx.to_flat_state(state)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by path."""
        return {path: variable.shape for path, variable in self._variables.items()}

    def bind(self, weights: Mapping[str, Array]) -> Transformer:
        """Returns the model with these weights.

        Args:
            weights: By path, as `jaxlm.families.names.weights` lists them, in any float dtype.
        """
        flat: Any = {
            tuple(path.split(".")): variable.replace(weights[path]) for path, variable in self._variables.items()
        }
        return nnx.merge(self._graph, nnx.from_flat_state(flat))


def weights_by_path(model: Transformer, dtype: DTypeLike) -> dict[str, Array]:
    """Returns a model's weights by path, as arrays of `dtype`; what is such an array already is not copied."""
    flat = nnx.to_flat_state(all_dense(nnx.state(model, nnx.Param), dtype))
    return {_name(path): variable.get_value().astype(dtype) for path, variable in flat}


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
