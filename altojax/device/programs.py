"""The compiled steps of a run, one for each shape of batch; compiled beside the training where a shape is foreseen."""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import jax

from altojax.device.batch import Batch, Part
from altojax.device.batch_shapes import Need, Shape, ShapeLadder
from altojax.device.optimizer import Hyper
from altojax.device.sharding import Sharding
from altojax.device.step import Frozen, SlotState, StaticPlan, eval_step, train_step
from jaxrun.process.background import Background
from jaxrun.process.interrupt import StopAsked, Stopped, is_compilers, wait_for

Step = Literal["train", "eval"]
STEPS: tuple[Step, ...] = ("train", "eval")


@dataclass(frozen=True)
class Compile:
    """One compilation.

    Attributes:
        step: Of which step; None is another program.
        shape: For which shape of a device's part, where it is a step.
        seconds: That it took.
        temp_bytes: Memory of a device that the step needs beside its inputs.
    """

    step: Step | None
    shape: Shape | None
    seconds: float
    temp_bytes: int


@dataclass(frozen=True)
class CompileStats:
    """The compilations so far.

    Attributes:
        done: Every compilation, in the order in which they ended.
        waited_s: Seconds that somebody waited for one.
    """

    done: tuple[Compile, ...] = ()
    waited_s: float = 0.0


class Programs:
    """Chooses the shape of each batch, lays it out, and compiles its program.

    Programs may be compiled in threads, which hold no array of the executor: they outlive it where nobody waits.

    Attributes:
        plan: The static settings.
        sharding: Of batches.
    """

    def __init__(self, plan: StaticPlan, sharding: Sharding, *, step_tokens: int):
        """Compiles nothing yet.

        Args:
            plan: The static settings.
            sharding: Of batches.
            step_tokens: Tokens' worth of time that a training step takes whatever its tokens.
        """
        self.plan, self.sharding = plan, sharding
        length = plan.rows.length
        self._ladders: dict[Step, ShapeLadder] = {step: ShapeLadder(length, step_tokens=step_tokens) for step in STEPS}
        self._done: list[Compile] = []
        self._waited_s = 0.0
        self._pool = Background(1 if jax.process_count() > 1 else 2, "compile")
        weakref.finalize(self, self._pool.close)

    def restart(
        self,
        frozen: Frozen,
        state: SlotState,
        hyper: Hyper[jax.Array],
        head_chunk: int,
        *,
        compile_tokens: int,
        padding: float,
    ) -> None:
        """Forgets all programs, and compiles those of other steps from now on; shapes stay.

        Args:
            frozen: The base.
            state: All that trains.
            hyper: Per-slot hyper-parameters, on the devices.
            head_chunk: Targets whose logits exist at once.
            compile_tokens: Tokens that steps compute in the time of a compilation; 0 where compiling is cheap.
            padding: The time of a row that a batch leaves empty, of the time of another.
        """
        self._jitted = jitted_steps(frozen, state, self.sharding, self.plan, head_chunk)
        weights, state, hyper = _like(frozen.weights), _like(state), _like(hyper)
        self._operands = {"train": (weights, state, hyper), "eval": (weights, state.adapters, hyper)}
        self._ready: dict[tuple[Step, Shape], Callable[..., Any]] = {}
        self._ahead: dict[tuple[Step, Shape], Future[Callable[..., Any]]] = {}
        self._pool.cancel()
        for ladder in self._ladders.values():
            ladder.compile_tokens, ladder.padding = compile_tokens, padding

    def shape_of(self, step: Step, parts: Sequence[Part]) -> Shape:
        """Returns the static shape that every device's part of a batch of these parts gets."""
        ladder, need = self._ladders[step], self.need(parts)
        shape = ladder.fit(need)
        taken = ladder.cost(need, shape)
        for name, one in self._ladders.items():
            one.passes(taken if step == "train" else taken // 3)
            if (wanted := one.soon()) is not None:
                self.begin(name, wanted)
        return shape

    def computed(self, parts: Sequence[Part], shape: Shape) -> int:
        """Returns the tokens that a device's products compute of a training step, padding included."""
        if self._ladders["train"].padding == 1.0:
            return shape.tokens
        return self.need(parts).rows * shape.length

    def need(self, parts: Sequence[Part]) -> Need:
        """Returns the need of a batch of these parts."""
        return self.sharding.need(parts, self.plan.rows)

    def steps_of(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Cuts the parts of a training step into as few steps as memory holds, which take the devices alike."""
        most, own = self._ladders["train"].most_rows, self.sharding.own_slots
        if most is None or not parts or self.need(parts).rows <= most:
            return [list(parts)] if parts else []
        steps: list[list[Part]] = [[]]
        for part in sorted(parts, key=lambda part: (part.slot % own, part.slot)):
            if steps[-1] and self.need([*steps[-1], part]).rows > most:
                steps.append([])
            steps[-1].append(part)
        return steps

    def batch(self, step: Step, parts: Sequence[Part], shape: Shape) -> Batch:
        """Lays parts out in a shape, on the devices."""
        return self.sharding.batch(parts, shape, self.plan.rows, drops=step == "train" and self.plan.drops)

    def expensive(self, step: Step) -> bool:
        """Whether compiling is expensive, so that few shapes are made."""
        return self._ladders[step].compile_tokens > 0

    def looks(self, step: Step) -> bool:
        """Whether `look` would look: compiling is expensive, and no shape is coming."""
        return self._ladders[step].looks()

    def reach(self, step: Step) -> int:
        """Returns how many steps to come a shape should be chosen by."""
        return self._ladders[step].reach()

    def look(self, step: Step, ahead: Sequence[Sequence[Part]], times: float, *, waits: bool = True) -> None:
        """Chooses a shape that coming batches repay, which is then compiled beside the training.

        Args:
            step: That takes them.
            ahead: The parts of batches to come.
            times: Batches that each of them stands for.
            waits: Whether the first of them go by while it is compiled.
        """
        ladder = self._ladders[step]
        if ladder.looks():
            needs = [self.need(parts) for parts in ahead]
            ladder.look(needs, times, ladder.compile_tokens if waits else 0)

    def arrive(self, step: Step) -> None:
        """Takes the shape that is coming, if any, as if its time had passed, and begins to compile it."""
        ladder = self._ladders[step]
        if (coming := ladder.soon()) is not None:
            ladder.passes(ladder.compile_tokens)
            self.begin(step, coming)

    def add_shape(self, step: Step, shape: Shape) -> None:
        """Adds a shape to those that batches may take."""
        self._ladders[step].seen.append(shape)

    def limit(self, rows: int) -> None:
        """Makes no shape of a training step that holds more rows."""
        self._ladders["train"].most_rows = rows

    def shapes(self) -> dict[str, dict[str, list[Any]]]:
        """Returns the shapes chosen so far and those that are coming, as plain data that `restore` takes."""
        ladders = self._ladders.items()
        return {
            "shapes": {name: [list(astuple(shape)) for shape in ladder.seen] for name, ladder in ladders},
            "coming": {name: [*astuple(one.coming[0]), one.coming[1]] for name, one in ladders if one.coming},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes over the shapes that `shapes` returned."""
        for step in STEPS:
            self._ladders[step].seen += [Shape(*shape) for shape in saved["shapes"][step]]
            if coming := saved.get("coming", {}).get(step):
                *shape, since = coming
                self._ladders[step].coming = Shape(*shape), since

    def get(
        self, step: Step, shape: Shape, asked: StopAsked | None = None, *, gives_up: bool = True
    ) -> Callable[..., Any]:
        """Returns the program for `shape`, compiling it if this is its first use.

        Args:
            step: Of which step.
            shape: Of the batch.
            asked: Asks it to stop.
            gives_up: Whether nobody waits for it then.

        Raises:
            Stopped: It was asked to while the step was being compiled, which continues.
        """
        known = self._ready.get((step, shape))
        if known is None:
            begun = time.perf_counter()
            known = self._ready[step, shape] = self._wait(step, shape, asked, gives_up=gives_up)
            self._waited_s += time.perf_counter() - begun
        return known

    def _wait(self, step: Step, shape: Shape, asked: StopAsked | None, *, gives_up: bool) -> Callable[..., Any]:
        future = self._ahead.get((step, shape)) or self._submit(step, shape, at_once=True)
        self._ahead[step, shape] = future
        try:
            known = wait_for(future, asked if gives_up else None)
        except jax.errors.JaxRuntimeError as error:
            del self._ahead[step, shape]
            if asked is None or not asked.requested or not is_compilers(error):
                raise
            # The signal that asked for the stop has ended the compiler.
            if gives_up:
                raise Stopped from error
            return wait_for(self._submit(step, shape, at_once=True), None)
        del self._ahead[step, shape]
        return known

    def other(self, jitted: Any, operands: tuple[Any, ...], asked: StopAsked | None) -> Callable[..., Any]:
        """Compiles a program that is no step, for the shapes of its operands, and counts it.

        Raises:
            Stopped: It was asked to meanwhile.
        """
        begun = time.perf_counter()
        work = partial(_compile, jitted, _like(operands), None, None, self._done)
        try:
            return wait_for(self._pool.submit(work, at_once=True), asked)
        except jax.errors.JaxRuntimeError as error:
            if asked is None or not asked.requested or not is_compilers(error):
                raise
            raise Stopped from error
        finally:
            self._waited_s += time.perf_counter() - begun

    def begin(self, step: Step, shape: Shape) -> None:
        """Begins to compile the program for `shape` beside the training, if that has not begun; `get` waits for it.

        The processes of a run on several hosts compile one at a time, so in the same order.
        """
        if (step, shape) not in self._ready and (step, shape) not in self._ahead:
            self._ahead[step, shape] = self._submit(step, shape)

    def temp_bytes(self, step: Step, shape: Shape) -> int:
        """Returns the memory of a device that a step needs beside its inputs, compiling it if nobody has."""
        self.get(step, shape)
        return [one.temp_bytes for one in self._done if (one.step, one.shape) == (step, shape)][-1]

    def stats(self) -> CompileStats:
        """Returns the compilations so far."""
        return CompileStats(tuple(self._done), self._waited_s)

    def close(self) -> None:
        """Compiles no more: those that wait for their turn are cancelled, and the results of others are dropped."""
        self._pool.close()
        self._ahead.clear()

    def _submit(self, step: Step, shape: Shape, *, at_once: bool = False) -> Future[Callable[..., Any]]:
        operands = (*self._operands[step], _like(self.batch(step, [], shape)))
        work = partial(_compile, self._jitted[step], operands, step, shape, self._done)
        return self._pool.submit(work, at_once=at_once)


def jitted_steps(
    frozen: Frozen, state: SlotState, sharding: Sharding, plan: StaticPlan, head_chunk: int
) -> dict[str, Any]:
    """Returns the training step and the evaluation step of a run, jitted; see `altojax.device.step`.

    Args:
        frozen: The base.
        state: All that trains; shapes are enough, of these and of the weights.
        sharding: Of all of it.
        plan: The static settings.
        head_chunk: Targets whose logits exist at once.
    """
    kinds: dict[str, Any] = {
        "objective": plan.objective,
        "head_chunk": head_chunk,
        "collectives": sharding.collectives,
    }
    train = partial(train_step, frozen.graph, drops=plan.drops, averages=plan.averages, **kinds)
    evaluate = partial(eval_step, frozen.graph, **kinds)
    return {
        "train": sharding.train(train, frozen.weights, state),
        "eval": sharding.evaluate(evaluate, frozen.weights, state),
    }


def _like[T](tree: T) -> T:
    """Returns the shapes, dtypes and shardings of a tree's arrays."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

    return jax.tree.map(one, tree)


def _compile(
    jitted: Any, operands: tuple[Any, ...], step: Step | None, shape: Shape | None, done: list[Compile]
) -> Callable[..., Any]:
    """Compiles a program for the shapes of its operands, and adds that to `done`."""
    begun = time.perf_counter()
    compiled = jitted.lower(*operands).compile()
    analysis = compiled.memory_analysis()
    temp_bytes = int(analysis.temp_size_in_bytes) if analysis is not None else 0
    done.append(Compile(step, shape, time.perf_counter() - begun, temp_bytes))
    return compiled
