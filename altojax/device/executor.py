"""The device side of a run: one frozen base, its slots, and the steps that advance them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from altojax.device.batch import Part, TokenRow, tokens_of
from altojax.device.batch_shapes import Shape
from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.routing import LoRA
from altojax.device.objectives.objective import Settled, Terms
from altojax.device.optimizer import Hyper, empty_hyper, learning_rate
from altojax.device.programs import Programs
from altojax.device.sharding import Sharding
from altojax.device.slots import ParkingPlaces, Snapshot, adapter_of, empty_state, rank_of, to_slot, to_snapshot
from altojax.device.step import Frozen, StaticPlan, StepReport, local_structure, split_model
from altojax.estimates.step_prices import Prices, StepVariant, compile_tokens, prices_of
from jaxlm.devices.fingerprint import fingerprint
from jaxlm.devices.mesh import MeshLayout
from jaxlm.models.computation import Remat
from jaxlm.models.head import head_chunk_of
from jaxlm.models.transformer import Transformer
from jaxrun.process.interrupt import StopAsked, stop_if

IN_FLIGHT = 2
"""Steps that a device is given at a time: it never waits for the host, and who stops waits for no more than these."""


class Executor:
    """Trains and evaluates the trials in its slots; knows adapters and batches, no tasks and no rules.

    Attributes:
        plan: The static settings.
        config: The base.
        sharding: How slots and batches are sharded.
        programs: Its compiled steps, and the shapes they are for.
        variant: Of its steps, before any change of `recompute`.
        prices: Predicted costs of training steps and compilations, likewise.
        parking: Places for parked trials, once `make_places` has made them.
    """

    def __init__(self, model: Transformer, plan: StaticPlan, *, layout: MeshLayout | None = None):
        """Adapts `model` in place.

        Args:
            model: The base; its weights are frozen and shared by all slots.
            plan: The static settings.
            layout: The mesh that the weights are sharded over, or None for the default device. All processes of a run
                on several hosts make the same calls, with the same arguments, and get the same results.
        """
        self.plan, self.config = plan, model.config
        self.sharding = Sharding(layout, plan.slots, plan.objective)
        sizes: dict[str, Any] = {"rank": plan.rank, "kernels": plan.kernels}
        remat = Remat(model.remat, model.scan_layers)
        self.variant = StepVariant(plan.kernels, remat)
        self.prices = self._prices(remat)
        projections = dict(plan.projections)
        adapt(model, projections, slots=plan.slots, **sizes, zeros=self.sharding.zeros, salt=self.sharding.constant)
        self._frozen, adapters = split_model(model, LoRA)
        if layout is not None:
            self._frozen = Frozen(local_structure(model, layout, projections, sizes), self._frozen.weights)
        moments = self.sharding.moments(adapters, plan.optimizer_state)
        kinds: dict[str, Any] = {"accumulates": plan.accumulates, "averages": len(plan.averages)}
        self._state = empty_state(adapters, moments, **kinds, steps=self.sharding.steps())
        if layout is None:
            # Where a step will leave it, so that what takes it is compiled once.
            self._state = jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), self._state)
        self._hyper = empty_hyper(plan.slots, plan.objective.trial_values)
        self._hyper_on_device: Hyper[jax.Array] | None = None
        self._put, self._take = self.sharding.put(self._state), self.sharding.take(self._state)
        self._keep = self.sharding.keep(self._state.adapters)
        self._kept: nnx.State | None = None
        self.parking: ParkingPlaces
        self._rates = jax.jit(learning_rate)
        self.programs = Programs(plan, self.sharding, step_tokens=self.prices.step_tokens)
        self._restart(remat)

    def put(self, slot: int, snapshot: Snapshot, hyper: Mapping[str, float]) -> None:
        """Starts or resumes a trial in `slot`: its arrays replace whatever was there.

        Args:
            slot: Index of the slot.
            snapshot: The trial at rest.
            hyper: A value for every field of `Hyper` but the rank, and for every number that the objective reads.
        """
        content = self.sharding.content(to_slot(snapshot, self._state, self.plan.rank))
        self._state = self._put(self._state, slot, content)
        self._set_hyper(slot, {**hyper, "rank": rank_of(snapshot)})

    def take(self, slot: int, rank: int, keys: tuple[str, ...], *, gathers: bool = True) -> Snapshot:
        """Copies the trial in `slot` to the host, trimmed to its rank and projections.

        Args:
            slot: Index of the slot.
            rank: The trial's.
            keys: Projections that it adapts.
            gathers: Whether it has gathered gradients.
        """
        content = self._take(self._state, slot)
        return to_snapshot(content if gathers else content._replace(gathered=None), rank, keys)

    def make_places(self, places: int) -> None:
        """Makes the memory that a run needs beside its steps: for adapters kept, and for so many parked trials."""
        self._kept = jax.tree.map(jnp.zeros_like, self._state.adapters)
        self.parking = ParkingPlaces(self._state, self._kept, places)

    @property
    def place_bytes(self) -> int:
        """Memory of the device that a place takes."""
        return self.sharding.bytes_here((self._state, self._state.adapters)) // self.sharding.own_slots

    def park(self, slot: int, place: int) -> None:
        """Copies the trial in `slot`, with the adapter kept of it, to a place on the device."""
        self.parking.park(place, self._state, self._kept, slot)

    def resume(self, place: int, slot: int, rank: int, hyper: Mapping[str, float]) -> None:
        """Puts the trial of a place, with the adapter kept of it, back into a slot; `hyper` as for `put`."""
        self._state, self._kept = self.parking.resume(place, self._state, self._kept, slot)
        self._set_hyper(slot, {**hyper, "rank": rank})

    def keep(self, slots: Sequence[int], average: int | None = None) -> None:
        """Copies the adapters of `slots` as they are now, on the device, to where `kept` finds them.

        Args:
            slots: Which.
            average: Which running average of them, as of `measure`.
        """
        which = np.zeros(self.plan.slots, bool)
        which[list(slots)] = True
        if self._kept is None:
            self._kept = jax.tree.map(jnp.zeros_like, self._state.adapters)
        self._kept = self._keep(self._kept, self._adapters(average), which)

    def kept(self, slot: int, rank: int, keys: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
        """Copies the adapter kept of `slot` to the host, trimmed to its rank and projections."""
        assert self._kept is not None
        found = self._take(self._state._replace(adapters=self._kept), slot).adapters
        return adapter_of(jax.device_get(found), rank, keys)

    def clear(self, slot: int) -> None:
        """Empties `slot`: zero adapters and moments, nothing of the last trial stays."""
        nothing = self.sharding.content(to_slot({"steps": 0}, self._state, self.plan.rank))
        self._state = self._put(self._state, slot, nothing)
        self._set_hyper(slot, {})

    def train(self, parts: Sequence[Part], shape: Shape | None = None) -> StepReport:
        """One micro-batch of every part's slot. Returns device arrays without waiting for them.

        Args:
            parts: At most one a slot.
            shape: Their `programs.shape_of`, where the caller has it already.
        """
        shape = self.programs.shape_of("train", parts) if shape is None else shape
        batch = self.programs.batch("train", parts, shape)
        step = self.programs.get("train", shape)
        self._state, report = step(self._frozen.weights, self._state, self._device_hyper(), batch)
        return report

    def evaluate(
        self,
        due: Sequence[tuple[int, Sequence[TokenRow]]],
        rows_at_once: int,
        *,
        again: float = 0,
        average: int | None = None,
        asked: StopAsked | None = None,
        begun: Callable[[], None] | None = None,
        done: Callable[[int], None] | None = None,
    ) -> dict[int, float]:
        """Returns the mean loss of its rows, for every (slot, rows) in `due`; arguments as of `measure`.

        Raises:
            Stopped: It was asked to.
        """
        found = self.measure(due, rows_at_once, again=again, average=average, asked=asked, begun=begun, done=done)
        return {slot: one["loss"] for slot, one in found.items()}

    def measure(
        self,
        due: Sequence[tuple[int, Sequence[TokenRow]]],
        rows_at_once: int,
        *,
        again: float = 0,
        average: int | None = None,
        asked: StopAsked | None = None,
        begun: Callable[[], None] | None = None,
        done: Callable[[int], None] | None = None,
    ) -> dict[int, dict[str, float]]:
        """Returns the mean ``loss`` of its rows and the objective's metrics, for every (slot, rows) in `due`.

        Args:
            due: Slots to evaluate.
            rows_at_once: Rows of a batch on one device.
            again: Evaluations like this one to come.
            average: Index of the window whose running average is measured; None is the adapters themselves.
            asked: Asks it to stop.
            begun: Called once the device has a batch to evaluate, maybe after steps that it has not done yet.
            done: Called with the number of rows evaluated so far.

        Raises:
            Stopped: It was asked to.
        """
        batches = self._evaluated(due, rows_at_once, again, average, asked, begun, done)
        sums = [terms._replace(rows=None) for _, _, terms in batches]
        added = jax.tree.map(lambda *column: np.sum(column, axis=0, dtype=np.float64), *sums)
        totals = {"loss": added.loss, **added.metrics}
        counts = {slot: self.plan.objective.count(rows) for slot, rows in due}
        found = {slot: {name: float(total[slot] / counts[slot]) for name, total in totals.items()} for slot, _ in due}
        for slot, settled in self._settled(due, batches).items():
            found[slot] |= {name: float(values.mean()) for name, values in settled.items()}
        return found

    def row_losses(
        self,
        due: Sequence[tuple[int, Sequence[TokenRow]]],
        rows_at_once: int,
        *,
        again: float = 0,
        average: int | None = None,
        asked: StopAsked | None = None,
    ) -> dict[int, Float[np.ndarray, " rows"]]:
        """Returns the loss of each row in nats, summed over its targets, for every (slot, rows) in `due`.

        The rows of a slot are different objects; the objective says the losses of rows. Arguments as of `measure`.

        Raises:
            Stopped: It was asked to.
        """
        return self._of_rows(due, self._evaluated(due, rows_at_once, again, average, asked))

    def _settled(
        self, due: Sequence[tuple[int, Sequence[TokenRow]]], batches: Sequence[tuple[Sequence[Part], Shape, Terms]]
    ) -> dict[int, dict[str, Float[np.ndarray, " samples"]]]:
        """Returns what depends on all rows of a slot, of the slots where something does."""
        objective = self.plan.objective
        if not isinstance(objective, Settled):
            return {}
        numbers = {slot: {name: float(of[slot]) for name, of in self._hyper.objective.items()} for slot, _ in due}
        waiting = [(slot, rows) for slot, rows in due if objective.settles(numbers[slot])]
        losses = self._of_rows(waiting, batches) if waiting else {}
        return {slot: objective.settle(rows, losses[slot], numbers[slot]) for slot, rows in waiting}

    def _of_rows(
        self, due: Sequence[tuple[int, Sequence[TokenRow]]], batches: Sequence[tuple[Sequence[Part], Shape, Terms]]
    ) -> dict[int, Float[np.ndarray, " rows"]]:
        found: dict[tuple[int, int], float] = {}
        for parts, shape, terms in batches:
            assert terms.rows is not None
            for slot, rows, first in self.sharding.places(parts, shape, self.plan.rows):
                found |= {(slot, id(row)): float(terms.rows[first + i]) for i, row in enumerate(rows)}
        return {slot: np.array([found[slot, id(row)] for row in rows], np.float64) for slot, rows in due}

    def _evaluated(
        self,
        due: Sequence[tuple[int, Sequence[TokenRow]]],
        rows_at_once: int,
        again: float,
        average: int | None,
        asked: StopAsked | None,
        begun: Callable[[], None] | None = None,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Sequence[Part], Shape, Terms]]:
        """Evaluates in batches; returns of each its parts, their shape and the terms, on the host."""
        batches = self.sharding.eval_batches(due, self.plan.rows, rows_at_once)
        self.programs.look("eval", batches, 1 + again, waits=False)
        # The largest first, whose shape holds the others until they have one of their own.
        order = sorted(range(len(batches)), key=lambda one: -sum(len(part.rows) for part in batches[one]))
        fitted = {one: self.programs.shape_of("eval", batches[one]) for one in order}
        shapes = [fitted[one] for one in range(len(batches))]
        adapters = self._adapters(average)
        sums: list[Terms] = []
        count = 0
        for parts, shape in zip(batches, shapes, strict=True):
            stop_if(asked)
            batch = self.programs.batch("eval", parts, shape)
            step = self.programs.get("eval", shape, asked)
            sums.append(step(self._frozen.weights, adapters, self._device_hyper(), batch))
            if begun is not None and len(sums) == 1:
                begun()
            if len(sums) >= IN_FLIGHT:
                jax.block_until_ready(sums[-IN_FLIGHT])
            count += sum(len(part.rows) for part in parts)
            if done is not None:
                done(count)
        return list(zip(batches, shapes, jax.device_get(sums), strict=True))

    def learning_rates(self, steps: Int[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
        """Returns the learning rate of every slot at its own optimizer step."""
        return np.asarray(self._rates(self._hyper, steps))

    def base_digest(self) -> str:
        """Returns a digest of the base's weights as they were loaded; all processes of a run must call it."""
        return fingerprint(self._frozen.weights)

    def model(self) -> Transformer:
        """Returns the model with the adapters in the slots; call it with a `Routing`."""
        return nnx.merge(self._frozen.graph, self._state.adapters, self._frozen.weights)

    def first_slot(self, function: Callable[[Transformer, Array, Array], Array]) -> Callable[..., Array]:
        """Jits a function of the model whose first slot is slot 0; a call sees the adapters of its time.

        Args:
            function: (model, scale, tokens) -> an array, the same on all devices of the first group.
        """
        graph = self._frozen.graph

        def split(weights: nnx.State, adapters: nnx.State, scale: Array, tokens: Array) -> Array:
            return function(nnx.merge(graph, adapters, weights), scale, tokens)

        jitted = self.sharding.first_slot(split, self._frozen.weights, self._state)
        return lambda scale, tokens: jitted(self._frozen.weights, self._state.adapters, scale, tokens)

    def of_rows(
        self, function: Callable[[Callable[[], Transformer], Array, Any], Any]
    ) -> Callable[[Any, int | None, StopAsked | None], Any]:
        """Returns a function of rows on the devices, each of which has its own; it is compiled for each shape of them.

        Args:
            function: (makes the model, scale of the device's slots, rows) -> arrays whose first axis is the rows;
                traced. Rows are a tree of such arrays, their slots counted from 0 on each device.

        Returns:
            (rows of all devices, running average or None, what asks it to stop) -> arrays of the rows of all devices.
            A call sees the adapters of its time; it raises Stopped where it was asked to while it compiled.
        """
        frozen = self._frozen
        ready: dict[Any, Callable[..., Any]] = {}

        def split(weights: nnx.State, adapters: nnx.State, scale: Array, rows: Any) -> Any:
            return function(lambda: nnx.merge(frozen.graph, adapters, weights), scale, rows)

        jitted = self.sharding.of_rows(split, frozen.weights, self._state)

        def call(rows: Any, average: int | None, asked: StopAsked | None) -> Any:
            placed = self.sharding.place_rows(rows)
            operands = (frozen.weights, self._adapters(average), self._device_hyper().scale, placed)
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(rows))
            if shapes not in ready:
                ready[shapes] = self.programs.other(jitted, operands, asked)
            return ready[shapes](*operands)

        return call

    def tokens_alone(self, part: Part) -> int:
        """Returns the tokens that a device computes for this part, what fills its tiles included."""
        replica = max(self.sharding.deal([part]), key=lambda own: sum(len(one.rows) for one in own))
        return sum(tokens_of(one, self.plan.rows, self.plan.objective) for one in replica)

    def recompute(self, choice: Remat) -> None:
        """Changes what the backward pass recomputes; steps are compiled anew where that is a change."""
        model = self.model()
        if choice != (model.remat, model.scan_layers):
            model.remat, model.scan_layers = choice
            self._frozen, _ = split_model(model, LoRA)
            self._restart(choice)

    def resident_bytes(self) -> int:
        """Bytes that stay on each device whatever the batch: base weights, adapters twice, moments, averages."""
        return self.sharding.bytes_here((self._frozen.weights, self._state, self._state.adapters))

    def close(self) -> None:
        """Compiles no more; the slots stay as they are."""
        self.programs.close()

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _adapters(self, average: int | None) -> nnx.State:
        return self._state.adapters if average is None else self._state.averages[average]

    def _prices(self, remat: Remat) -> Prices:
        plan, variant = self.plan, StepVariant(self.plan.kernels, remat)
        return prices_of(self.config, variant, slots=self.sharding.own_slots, rank=plan.rank, keys=plan.projections)

    def _restart(self, remat: Remat) -> None:
        prices, chunk = self._prices(remat), head_chunk_of(self.config)
        known: dict[str, Any] = {"compile_tokens": compile_tokens(prices), "padding": prices.padding}
        self.programs.restart(self._frozen, self._state, self._device_hyper(), chunk, **known)

    def _set_hyper(self, slot: int, values: Mapping[str, float]) -> None:
        fields = self._hyper._asdict()
        for name, array in (fields | fields.pop("objective")).items():
            array[slot] = values.get(name, 0)
        self._hyper_on_device = None

    def _device_hyper(self) -> Hyper[jax.Array]:
        if self._hyper_on_device is None:
            self._hyper_on_device = self.sharding.hyper(self._hyper)
        return self._hyper_on_device
