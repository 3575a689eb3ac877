"""A base with any number of adapters on it, for inference: each row of a batch picks one, or none."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from altojax.adapters.merge import projection_of
from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter
from altojax.device.batch import TokenRow, rows_here
from altojax.device.executor import Executor
from altojax.device.multi_lora.routing import LoRA, Routing
from altojax.device.step import StaticPlan, split_model
from jaxlm.completion import complete
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.names import adaptable, expert_projections
from jaxlm.models.sampling import Sampling
from jaxlm.models.transformer import Transformer

BASE = 0
"""The slot that stays empty: rows there see the base alone."""
SHORT = 32
"""Tokens of a text of which rows are full, whatever comes."""


class AdaptedModel:
    """The base in slot 0, adapter i in slot i + 1; the same layers, kernels and losses as in training.

    Attributes:
        slots: One for the base, one for each adapter.
    """

    def __init__(
        self,
        model: Transformer,
        adapters: Sequence[tuple[AdapterSpec, Adapter]],
        *,
        longest: int = 1024,
        layout: MeshLayout | None = None,
    ):
        """Adapts `model` in place.

        Args:
            model: A base without adapters.
            adapters: Of any ranks, on any projections.
            longest: Tokens of the longest row that `losses` is going to see.
            layout: The mesh that the base lies over; None is one device.
        """
        known = adaptable(model.config)
        used = {key for spec, _ in adapters for key in spec.modules} or {next(iter(known))}
        self.slots = 1 + len(adapters)
        groups = 1 if layout is None else layout.groups
        self._scales = [0.0, *(spec.scale for spec, _ in adapters), *[0.0] * (-self.slots % groups)]
        rows = rows_here([[longest]])
        plan = StaticPlan(
            slots=len(self._scales),
            rank=max((spec.rank for spec, _ in adapters), default=1),
            projections={key: one for key, one in known.items() if key in used},
            rows=replace(rows, texts=max(2, rows.length // SHORT)),
            accumulates=False,
            drops=False,
        )
        self._executor = Executor(model, plan, layout=layout)
        self._graph: nnx.GraphDef[Transformer] | None = None
        if layout is not None:
            # Steps see one device's part of the model, and gather weights; calls of it see all of it: each device then
            # multiplies by the part of a weight that it has, and they exchange what comes out, which is little.
            for key in used - expert_projections(model.config).keys():
                projection_of(model, known[key].path).kernels = "xla"
            self._graph = split_model(model, LoRA)[0].graph
        for slot, (spec, adapter) in enumerate(adapters, start=1):
            arrays = {key: {"a": a, "b": b} for key, (a, b) in adapter.items()}
            self._executor.put(slot, {"adapters": arrays, "steps": 0}, {"scale": spec.scale})

    @property
    def model(self) -> Transformer:
        """The model with its adapters, on all of its devices; call it with `routing`, under `jax.jit` on a mesh."""
        found = self._executor.model()
        if self._graph is None:
            return found
        frozen, adapters = split_model(found, LoRA)
        return nnx.merge(self._graph, adapters, frozen.weights)

    def routing(self, slots: Sequence[int]) -> Routing:
        """Returns what sends row i of a batch to slot ``slots[i]``."""
        return Routing(jnp.asarray(slots, jnp.int32), jnp.asarray(self._scales, jnp.float32))

    def losses(
        self, rows: Sequence[TokenRow], *, rows_at_once: int = 16, done: Callable[[int], None] | None = None
    ) -> list[float]:
        """Returns the mean loss over all targets of `rows`, in nats, of every slot.

        Args:
            rows: The same for all.
            rows_at_once: Of a batch, over all devices.
            done: Told how many rows of all slots have been evaluated so far.
        """
        sharding = self._executor.sharding
        own = -(-rows_at_once // (sharding.groups * sharding.replicas))
        found = self._executor.evaluate([(slot, rows) for slot in range(self.slots)], own, done=done)
        return [found[slot] for slot in range(self.slots)]

    def row_losses(self, rows: Sequence[TokenRow], *, rows_at_once: int = 16) -> list[Float[np.ndarray, " rows"]]:
        """Returns the loss of each row, summed over its targets, in nats, of every slot; arguments as of `losses`."""
        sharding = self._executor.sharding
        own = -(-rows_at_once // (sharding.groups * sharding.replicas))
        found = self._executor.row_losses([(slot, rows) for slot in range(self.slots)], own)
        return [found[slot] for slot in range(self.slots)]

    def complete(
        self,
        prompts: Sequence[np.ndarray],
        slot: int,
        sampling: Sampling,
        *,
        eos_ids: Sequence[int],
        made_some: Callable[[int], None] = lambda count: None,
    ) -> list[np.ndarray]:
        """Continues prompts with one slot's adapter.

        Args:
            prompts: int32 [length] each.
            slot: `BASE` or an adapter's.
            sampling: How.
            eos_ids: Tokens that end a text.
            made_some: Called with the number of prompts completed, whenever it grows.

        Returns:
            The new tokens of each prompt, up to its first end token.

        Raises:
            UserError: A prompt and its new tokens are more than the model has positions for.
        """
        return complete(
            self.model,
            prompts,
            sampling,
            eos_ids=eos_ids,
            routing=lambda rows: self.routing([slot] * rows),
            made_some=made_some,
        )
