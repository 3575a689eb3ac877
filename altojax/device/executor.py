"""The device side of a run: one frozen base, its slots, and the compiled steps that advance them."""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from altojax.device.batch import Part, TokenRow
from altojax.device.batch_shapes import Need, Shape, ShapeLadder
from altojax.device.multi_lora import LoRA, adapt
from altojax.device.optimizer import Hyper, empty_hyper
from altojax.device.sharding import Sharding
from altojax.device.slots import Snapshot, adapter_of, empty_state, to_slot, to_snapshot
from altojax.device.step import Batch, Frozen, SlotState, StepReport, eval_step, split_model, train_step
from altojax.estimates.step_prices import compile_tokens, prices_of
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.names import Projection
from jaxlm.models.logit_chunk import head_chunk_of
from jaxlm.models.spec import Remat
from jaxlm.models.transformer import Transformer
from jaxrun.process.background import Background
from jaxrun.process.interrupt import StopAsked, stop_if, wait_for

IN_FLIGHT = 2
"""Steps that a device is given at a time: it never waits for the host, and who stops waits for no more than these."""


@dataclass(frozen=True)
class StaticPlan:
    """What is static for a whole run: the same for every trial that comes and goes.

    Attributes:
        slots: Trials that train at once; a multiple of the groups of a mesh.
        rank: The largest rank of any trial.
        projections: Projections that any trial adapts.
        lengths: Length buckets, in tokens.
        accumulates: Whether any trial accumulates gradients.
        drops: Whether any trial has dropout.
        packed: Whether rows hold several texts.
        shares: Whether texts of a slot share rows in training, where `packed` and `drops` are false.
        kernels: Implementation of the adapter product; None takes the fastest that fits.
    """

    slots: int
    rank: int
    projections: Mapping[str, Projection]
    lengths: tuple[int, ...]
    accumulates: bool
    drops: bool
    packed: bool
    shares: bool = False
    kernels: str | None = None


@dataclass(frozen=True)
class Compile:
    """One compilation.

    Of which step, for which shape of a device's part, how long it took and what memory of a device the step needs
    beside its inputs.
    """

    step: str
    shape: Shape
    seconds: float
    temp_bytes: int


class Executor:
    """Trains and evaluates whatever sits in the slots. Knows adapters and batches, no tasks and no rules.

    Attributes:
        prices: What training steps are predicted to take, as the model came.
    """

    def __init__(
        self,
        model: Transformer,
        plan: StaticPlan,
        *,
        layout: MeshLayout | None = None,
    ):
        """Adapts `model` in place.

        Args:
            model: The base; its weights are frozen and shared by all slots.
            plan: What is static.
            layout: The mesh that the weights lie on, or None for the default device. All processes of a run on several
                hosts make the same calls, with the same arguments, and get the same results.
        """
        self.plan, self.config = plan, model.config
        self.sharding = Sharding(layout, plan.slots)
        self._scans = model.scan_layers
        sizes: dict[str, Any] = {"rank": plan.rank, "kernels": plan.kernels}
        self.prices = prices_of(
            self.config,
            slots=self.sharding.own_slots,
            keys=plan.projections,
            scan_layers=model.scan_layers,
            **sizes,
        )
        projections = dict(plan.projections)
        adapt(model, projections, slots=plan.slots, **sizes, zeros=self.sharding.zeros, salt=self.sharding.constant)
        self.frozen, adapters = split_model(model, LoRA)
        if layout is not None:
            self.frozen = Frozen(local_structure(model, layout, projections, sizes), self.frozen.weights)
        self.state = empty_state(adapters, accumulates=plan.accumulates, steps=self.sharding.steps())
        self.hyper = empty_hyper(plan.slots)
        self._hyper_on_device: Hyper | None = None
        self._head_chunk = head_chunk_of(model.config)
        self.ladders = {name: ShapeLadder() for name in ("train", "eval")}
        self.compiles: list[Compile] = []
        self.compile_s = 0.0
        self._put, self._take = self.sharding.put(self.state), self.sharding.take(self.state)
        self._keep, self._kept = self.sharding.keep(self.state.adapters), None
        self._empty: SlotState | None = None
        self._compiler = Background(1 if jax.process_count() > 1 else 2, "compile")
        weakref.finalize(self, self._compiler.close)
        self._jit()

    def put(self, slot: int, snapshot: Snapshot, hyper: Mapping[str, float]) -> None:
        """Starts or resumes a trial in `slot`: its arrays replace whatever was there.

        Args:
            slot: Index of the slot.
            snapshot: The trial at rest.
            hyper: A value for every field of `Hyper`.
        """
        content = self.sharding.content(to_slot(snapshot, self.state, self.plan.rank))
        self.state = self._put(self.state, slot, content)
        self._set_hyper(slot, hyper)

    def take(self, slot: int, rank: int, keys: tuple[str, ...]) -> Snapshot:
        """Copies the trial in `slot` to the host, trimmed to its rank and projections."""
        return to_snapshot(self._take(self.state, slot), rank, keys)

    def keep(self, slots: Sequence[int]) -> None:
        """Copies the adapters of `slots` as they are now, on the device, to where `kept` finds them."""
        which = np.zeros(self.plan.slots, bool)
        which[list(slots)] = True
        if self._kept is None:
            self._kept = jax.tree.map(jnp.zeros_like, self.state.adapters)
        self._kept = self._keep(self._kept, self.state.adapters, which)

    def kept(self, slot: int, rank: int, keys: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
        """Copies the adapter kept of `slot` to the host, trimmed to its rank and projections."""
        content = self._take(self.state._replace(adapters=self._kept), slot)
        return adapter_of(jax.device_get(content.adapters), rank, keys)

    def clear(self, slot: int) -> None:
        """Empties `slot`: zero adapters and moments, nothing of the last trial stays."""
        if self._empty is None:
            nothing: Snapshot = {"adapters": {}, "mu": {}, "nu": {}, "gathered": {}, "steps": 0}
            self._empty = self.sharding.content(to_slot(nothing, self.state, self.plan.rank))
        self.state = self._put(self.state, slot, self._empty)
        self._set_hyper(slot, {})

    def train(self, parts: Sequence[Part], shape: Shape | None = None) -> StepReport:
        """One micro-batch of every part's slot. Returns device arrays without waiting for them.

        Args:
            parts: At most one a slot.
            shape: What `shape_of` said of them, where it was asked already.
        """
        shape = self.shape_of("train", parts) if shape is None else shape
        batch = self.sharding.batch(parts, shape, packed=self.plan.packed, shares=self.plan.shares)
        step = self.compiled("train", shape)
        self.state, report = step(self.frozen.weights, self.state, self._device_hyper(), batch)
        return report

    def evaluate(
        self,
        due: Sequence[tuple[int, Sequence[TokenRow]]],
        rows_at_once: int,
        *,
        again: float = 0,
        asked: StopAsked | None = None,
        done: Callable[[int], None] | None = None,
    ) -> dict[int, float]:
        """Returns the mean loss over all targets of its rows, for every (slot, rows) in `due`.

        Args:
            due: Slots to evaluate.
            rows_at_once: Rows of a batch on one device.
            again: Evaluations like this one to come.
            asked: What says that nobody waits for it any more.
            done: Told how many rows have been evaluated so far.

        Raises:
            Stopped: It was asked to.
        """
        # Where compiling is dear, a batch of its own would take a shape that is there, and save nothing.
        alone = self.prices.step_s + self.prices.compile_s / (1 + again)
        step_tokens = None if self.ladders["eval"].compile_tokens else round(alone / self.prices.token_s)
        batches = self.sharding.eval_batches(due, rows_at_once, self.plan.lengths, step_tokens)
        self.look("eval", batches, 1 + again, waits=False)
        # The longest first, whose shape holds the others until they have one of their own.
        shapes = [self.shape_of("eval", parts) for parts in reversed(batches)][::-1]
        sums: list[Array] = []
        count = 0
        for parts, shape in zip(batches, shapes, strict=True):
            stop_if(asked)
            batch = self.sharding.batch(parts, shape, packed=self.plan.packed)
            step = self.compiled("eval", shape, asked)
            sums.append(step(self.frozen.weights, self.state.adapters, self._device_hyper(), batch))
            jax.block_until_ready(sums[-IN_FLIGHT:][0])
            count += sum(len(part.rows) for part in parts)
            if done is not None:
                done(count)
        totals = np.sum(np.stack(jax.device_get(sums)).astype(np.float64), axis=0)
        return {slot: float(totals[slot] / sum(int(row.targets.sum()) for row in rows)) for slot, rows in due}

    def shape_of(self, step: str, parts: Sequence[Part]) -> Shape:
        """Returns the static shape that every device's part of a batch of these parts gets."""
        ladder = self.ladders[step]
        shape = ladder.fit(self._need(step, parts))
        taken = shape.tokens + ladder.step_tokens
        for name, one in self.ladders.items():
            one.passes(taken if step == "train" else taken // 3)
            if (wanted := one.soon()) is not None:
                self.compile_ahead(name, wanted)
        return shape

    def tokens_alone(self, part: Part) -> int:
        """Tokens that a device would compute in a training step of this part alone, padding included."""
        return min(length * rows for length, rows in self._need("train", [part]).rows.items())

    def look(self, step: str, ahead: Sequence[Sequence[Part]], times: float, *, waits: bool = True) -> None:
        """Looks for a shape that batches to come are worth, which is then compiled beside the training.

        Args:
            step: "train" or "eval".
            ahead: The parts of batches to come.
            times: Batches that each of them stands for.
            waits: Whether the first of them go by while it is compiled.
        """
        ladder = self.ladders[step]
        if ladder.looks():
            needs = [self._need(step, parts) for parts in ahead]
            ladder.look(needs, times, ladder.compile_tokens if waits else 0)

    def compiled(self, step: str, shape: Shape, asked: StopAsked | None = None) -> Callable[..., Any]:
        """Returns the compiled step for `shape`, compiling it if this is its first use.

        Args:
            step: "train" or "eval".
            shape: Of the batch.
            asked: What says that nobody waits for it any more.

        Raises:
            Stopped: It was asked to while the step was being compiled, which goes on.
        """
        known = self._compiled.get((step, shape))
        if known is None:
            begun = time.perf_counter()
            if (step, shape) not in self._ahead:
                self._ahead[step, shape] = self._begin(step, shape, at_once=True)
            known = self._compiled[step, shape] = wait_for(self._ahead[step, shape], asked)
            del self._ahead[step, shape]
            self.compile_s += time.perf_counter() - begun
        return known

    def foresee(self, step: str, shape: Shape) -> None:
        """Gives a ladder a shape that will do for most of its batches, and begins to compile it."""
        self.ladders[step].seen.append(shape)
        self.compile_ahead(step, shape)

    def compile_ahead(self, step: str, shape: Shape) -> None:
        """Begins to compile the step for `shape` beside the training, if that has not begun; `compiled` waits for it.

        The processes of a run on several hosts compile one at a time, so in the same order.
        """
        if (step, shape) not in self._compiled and (step, shape) not in self._ahead:
            self._ahead[step, shape] = self._begin(step, shape)

    def close(self) -> None:
        """Compiles no more: what waits for its turn is cancelled, and what has begun is nobody's any more."""
        self._compiler.close()
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin(self, step: str, shape: Shape, *, at_once: bool = False) -> Future[Callable[..., Any]]:
        # A compilation may outlive the executor, so it must hold none of its arrays.
        blank = _like(self._blank(step, shape))
        work = partial(_compile, self._jitted[step], (*self._operands[step], blank), step, shape, self.compiles)
        return self._compiler.submit(work, at_once=at_once)

    def recompute(self, choice: Remat) -> None:
        """Changes what the backward pass computes again; steps are compiled anew where that is a change."""
        model = nnx.merge(self.frozen.graph, self.state.adapters, self.frozen.weights)
        if choice != (model.remat, model.scan_layers):
            model.remat, model.scan_layers = choice
            self._scans = choice.scan_layers
            self.frozen, _ = split_model(model, LoRA)
            self._jit()

    def resident_bytes(self) -> int:
        """Bytes that stay on each device whatever the batch: base weights, adapters twice, moments."""
        return self.sharding.bytes_here((self.frozen.weights, self.state, self.state.adapters))

    def _jit(self) -> None:
        self._jitted = jitted_steps(self.frozen, self.state, self.sharding, self.plan, self._head_chunk)
        frozen, state, hyper = _like(self.frozen.weights), _like(self.state), _like(self._device_hyper())
        self._operands = {"train": (frozen, state, hyper), "eval": (frozen, state.adapters, hyper)}
        self._compiled: dict[tuple[str, Shape], Callable[..., Any]] = {}
        self._ahead: dict[tuple[str, Shape], Future[Callable[..., Any]]] = {}
        self._compiler.cancel()
        for ladder in self.ladders.values():
            ladder.compile_tokens = compile_tokens(self.config, self.plan.kernels, scan_layers=self._scans)
            ladder.step_tokens = self.prices.step_tokens

    def _need(self, step: str, parts: Sequence[Part]) -> Need:
        return self.sharding.need(parts, self.plan.lengths, shares=step == "train" and self.plan.shares)

    def _blank(self, step: str, shape: Shape) -> Batch:
        shares = step == "train" and self.plan.shares
        return self.sharding.batch([], shape, packed=self.plan.packed, shares=shares)

    def _set_hyper(self, slot: int, values: Mapping[str, float]) -> None:
        for name, array in self.hyper._asdict().items():
            array[slot] = values.get(name, 0)
        self._hyper_on_device = None

    def _device_hyper(self) -> Hyper:
        if self._hyper_on_device is None:
            self._hyper_on_device = self.sharding.hyper(self.hyper)
        return self._hyper_on_device


def _like(tree: Any) -> Any:
    """Returns what the arrays of a tree look like."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

    return jax.tree.map(one, tree)


def _compile(
    jitted: Any, operands: tuple[Any, ...], step: str, shape: Shape, done: list[Compile]
) -> Callable[..., Any]:
    """Compiles a step for what its operands look like, and adds that to what was done."""
    begun = time.perf_counter()
    compiled = jitted.lower(*operands).compile()
    analysis = compiled.memory_analysis()
    temp_bytes = int(analysis.temp_size_in_bytes) if analysis is not None else 0
    done.append(Compile(step, shape, time.perf_counter() - begun, temp_bytes))
    return compiled


def jitted_steps(
    frozen: Frozen, state: SlotState, sharding: Sharding, plan: StaticPlan, head_chunk: int
) -> dict[str, Any]:
    """Returns the training step and the evaluation step of a run, jitted; see `altojax.device.step`.

    Args:
        frozen: The base.
        state: What trains; shapes are enough, of these and of the weights.
        sharding: Where all of it lies.
        plan: What is static.
        head_chunk: Targets whose logits exist at once.
    """
    kinds: dict[str, Any] = {"head_chunk": head_chunk, "collectives": sharding.collectives}
    train = partial(train_step, frozen.graph, drops=plan.drops, **kinds)
    evaluate = partial(eval_step, frozen.graph, **kinds)
    return {
        "train": sharding.train(train, frozen.weights, state),
        "eval": sharding.evaluate(evaluate, frozen.weights, state),
    }


def local_structure(
    model: Transformer, layout: MeshLayout, projections: dict[str, Projection], sizes: Mapping[str, Any]
) -> Any:
    """Returns the static structure of the adapted model that one device computes."""

    def build() -> Transformer:
        kinds: dict[str, Any] = {"dtype": model.dtype, "remat": model.remat, "scan_layers": model.scan_layers}
        local = Transformer(layout.local_config, mesh_axes=layout.mesh_axes, rngs=nnx.Rngs(0), **kinds)
        adapt(local, projections, slots=1, **sizes)
        return local

    return nnx.split(nnx.eval_shape(build))[0]
