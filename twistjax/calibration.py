"""Inputs of each projection of a layer when a model reads calibration text, one layer at a time.

Layers may be changed on the way, so that what is measured of the next one is what a pruned model makes of the text.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxlm.families.config import LayerStack, ModelConfig
from jaxlm.families.names import projections
from jaxlm.families.schedule import LayerKind, layer_kind, schedule
from jaxlm.models.functional import Functional

ROWS_AT_ONCE = 8

Layer = dict[str, Array]
"""Weights of one layer by their path inside the block, such as ``mlp.up_proj.kernel``."""
Statistics = dict[str, Float[Array, "in in"]]
"""Of one layer: the mean of x xᵀ over all inputs x of each projection, float32, by its key."""
Squares = dict[str, Float[Array, "in"]]
"""Of one layer: the mean of x² over all inputs x of each projection, float32, by its key."""
_NOTES: dict[str, Callable[[Array], Array]] = {
    "products": lambda inputs: inputs.T @ inputs,
    "squares": lambda inputs: jnp.sum(jnp.square(inputs), axis=0),
    "inputs": lambda inputs: inputs,
}


class Walk:
    """A walk of calibration text through a model, layer by layer, in float32.

    Attributes:
        layers: Every layer's stack and place in it, in order.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], rows: Int32[np.ndarray, "rows length"]):
        """Embeds the text.

        Args:
            config: The model's.
            weights: Its weights by path.
            rows: int32 tokens; of several thousand, some more change little (SparseGPT takes 128 rows of 2048).
        """
        self.weights = weights
        self.layers = [(config.stacks[one.stack], one.place) for one in schedule(config, repeats=False)[0].members]
        self._model = Functional(config)
        size = next(size for size in range(min(ROWS_AT_ONCE, len(rows)), 0, -1) if len(rows) % size == 0)
        self._tokens = rows.size
        length = rows.shape[1]
        self._positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], (size, length))
        model = self._model.bind({path: value.astype(jnp.float32) for path, value in weights.items()})
        self._places = model.places(self._positions, None)
        batches = [jnp.asarray(rows[first : first + size]) for first in range(0, len(rows), size)]
        self._states = [model.embed(batch, self._positions) for batch in batches]
        self._blocks = {stack.name: nnx.split(getattr(model, stack.name))[0] for stack in config.stacks}

    def layer(self, stack: LayerStack, place: int) -> Layer:
        """Returns the weights of a layer as they were given, in float32."""
        inside = f"{stack.name}."
        return {
            path.removeprefix(inside): value[place].astype(jnp.float32)
            for path, value in self.weights.items()
            if path.startswith(inside)
        }

    def statistics(self, stack: LayerStack, place: int, layer: Layer) -> Statistics:
        """Returns what goes into a layer's projections; the walk stays where it is."""
        total: Any = None
        for state in self._states:
            _, sums = self._run("products", tuple(projections(stack.config)), stack, place, layer, state)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return {key: value / self._tokens for key, value in total.items()}

    def advance(self, stack: LayerStack, place: int, layer: Layer) -> None:
        """Lets the text through a layer, as it is given here."""
        self.squares(stack, place, layer)

    def squares(self, stack: LayerStack, place: int, layer: Layer) -> Squares:
        """Lets the text through a layer as `advance` does, and returns how large what goes into its projections is."""
        keys = tuple(projections(stack.config))
        found = self._through("squares", keys, stack, place, layer)
        return {key: jnp.sum(jnp.stack([sums[key] for sums in found]), axis=0) / self._tokens for key in keys}

    def outputs(self, keys: tuple[str, ...], stack: LayerStack, place: int, layer: Layer) -> list[dict[str, Array]]:
        """Lets the text through a layer, and returns what some projections make of it, [tokens, out] of each batch."""
        return self._through("outputs", keys, stack, place, layer)

    def inputs(self, key: str, stack: LayerStack, place: int, layer: Layer) -> list[Array]:
        """Returns what goes into a projection, [tokens, in] of each batch; the walk stays where it is."""
        runs = (self._run("inputs", (key,), stack, place, layer, state) for state in self._states)
        return [seen[key] for _, seen in runs]

    def _through(
        self, note: str, keys: tuple[str, ...], stack: LayerStack, place: int, layer: Layer
    ) -> list[dict[str, Array]]:
        runs = [self._run(note, keys, stack, place, layer, state) for state in self._states]
        self._states = [state for state, _ in runs if state is not None]
        return [seen for _, seen in runs]

    def _run(
        self, note: str, keys: tuple[str, ...], stack: LayerStack, place: int, layer: Layer, state: Array
    ) -> tuple[Array | None, dict[str, Array]]:
        kind = layer_kind(self._model.config, stack, place)
        return _run(self._blocks[stack.name], note, keys, kind, layer, state, self._places)


def calibrate(
    config: ModelConfig, weights: Mapping[str, Array], rows: Int32[np.ndarray, "rows length"]
) -> list[Statistics]:
    """Returns the statistics of every layer of a model as it is; arguments as of `Walk`."""
    found = []
    with exact_products():
        walk = Walk(config, weights, rows)
        for stack, place in walk.layers:
            layer = walk.layer(stack, place)
            found.append(walk.statistics(stack, place, layer))
            walk.advance(stack, place, layer)
    return found


def exact_products() -> AbstractContextManager[None]:
    """Returns a context whose float32 products are that; a GPU's are not by default, and Hessians are inverted."""
    return jax.default_matmul_precision("float32")


class _Watched:
    """Stands in for a projection and notes what goes in."""

    def __init__(self, inner: Any, key: str, note: str, seen: dict[str, Array]):
        self.inner, self.key, self.note, self.seen = inner, key, note, seen

    def __call__(self, x: Array, routing: Any = None) -> Array:
        made = self.inner(x, routing)
        if self.note == "outputs":
            self.seen[self.key] = made.reshape(-1, made.shape[-1]).astype(jnp.float32)
        else:
            self.seen[self.key] = _NOTES[self.note](x.reshape(-1, x.shape[-1]).astype(jnp.float32))
        return made


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    graph: Any, note: str, keys: tuple[str, ...], kind: LayerKind, layer: Layer, state: Array, places: Any
) -> tuple[Array | None, dict[str, Array]]:
    """Runs one layer; returns what comes out, unless it is not asked for, and what is noted of some projections."""
    flat: Any = {tuple(path.split(".")): nnx.Param(value) for path, value in layer.items()}
    block = nnx.merge(graph, nnx.from_flat_state(flat))
    seen: dict[str, Array] = {}
    for key in keys:
        part, name = key.split(".")
        owner = getattr(block, part)
        object.__setattr__(owner, name, _Watched(getattr(owner, name), key, note, seen))
    out, _ = block(state, places, None, kind)
    return None if note in ("inputs", "products") else out, seen
