"""The memory of a program, read off its jaxpr: nothing is compiled, and no array exists.

What XLA does is imitated where it matters: values made element by element are computed where they are read and take no
room of their own; products, gathers' sources and loops' results lie in memory; a buffer is free after its last reader;
a donated input becomes the result that is made of it. What a compiler adds to that (copies, gaps between buffers) is
not foreseen; docs/measured/log.md says how much it was.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "shard_map": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that stand for the program which they have under this name."""
_VIEWS = {"reshape", "squeeze", "expand_dims", "split", "name", "copy", "optimization_barrier"}
"""Primitives that only reshape a buffer."""
_LOOPS = ("scan", "while", "cond")
_TURN = "turn"
"""A change of the order in which an array's numbers lie."""
_WRITES = {
    *_LOOPS,
    _TURN,
    "all_gather",
    "concatenate",
    "conv_general_dilated",
    "cummax",
    "cumsum",
    "custom_partitioning",
    "custom_vmap_call",
    "dot_general",
    "pallas_call",
    "psum",
    "psum_invariant",
    "ragged_dot_general",
    "scatter",
    "scatter-add",
    "sort",
    "top_k",
    "triton_kernel_call",
}
"""Primitives whose results are always written to memory, kernels among them; so are those of reductions and cuDNN."""
_STORE = "store"
"""A value that a turn of a loop puts into its place among those of all turns."""


@dataclass(frozen=True)
class Usage:
    """The memory of a program on one device.

    Attributes:
        inputs: Bytes of every input.
        temporary: The most bytes at a time of temporaries and of results that take no input's place.
    """

    inputs: tuple[int, ...]
    temporary: int


@dataclass
class _Buffer:
    """Bytes, and the time from which and to which they are taken."""

    size: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Lives:
    """The buffers of a program, in a time of which it takes `span`."""

    buffers: Sequence[_Buffer] = ()
    span: int = 0

    def most(self) -> int:
        """Returns the most bytes that are taken at a time."""
        changes: dict[int, int] = {}
        for one in self.buffers:
            changes[one.begin] = changes.get(one.begin, 0) + one.size
            changes[one.end] = changes.get(one.end, 0) - one.size
        return max(accumulate(changes[at] for at in sorted(changes)), default=0)


@dataclass(frozen=True)
class _Step:
    """One thing that a program does.

    Attributes:
        name: Its primitive.
        reads: Values that it reads.
        makes: Values that it makes.
        inner: Buffers inside it, where it is a loop or a branch.
        becomes: Value that it makes -> value that it reads, where both are one buffer if nobody reads the latter later.
    """

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    inner: _Lives = _Lives()
    becomes: dict[int, int] = field(default_factory=dict)

    @property
    def reduces(self) -> bool:
        """Whether it makes much into little."""
        return self.name.startswith(("reduce_", "arg"))

    @property
    def writes(self) -> bool:
        """Whether its results are written to memory, whoever reads them."""
        return self.reduces or self.name in _WRITES or self.name.startswith("dot_product_attention")

    @property
    def fuses(self) -> bool:
        """Whether it computes what it reads, rather than read it from memory."""
        return self.name == _STORE or self.reduces or not (self.writes or self.name == "gather")


@dataclass
class _Program:
    """The steps of a program, with calls replaced by what they call.

    Attributes:
        sizes: Bytes of every value.
        steps: In their order.
        later: Values that are slices of what a loop goes through: made where they are first read.
        gathered: What was gathered of which values.
    """

    sizes: list[int] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    later: set[int] = field(default_factory=set)
    gathered: dict[tuple[tuple[int, ...], str], list[int]] = field(default_factory=dict)

    def values(self, variables: Iterable[Any]) -> list[int]:
        """Returns a new value for each."""
        first = len(self.sizes)
        self.sizes += [_bytes(one.aval) for one in variables]
        return list(range(first, len(self.sizes)))

    def add(self, step: _Step) -> None:
        """Adds a step, and before it the slices that it is the first to read."""
        for one in self.later.intersection(step.reads):
            self.later.remove(one)
            self.steps.append(_Step("dynamic_slice", (), (one,)))
        self.steps.append(step)

    def gather(self, equation: Any, reads: Sequence[int]) -> list[int]:
        """Adds the gathering of parts along an axis.

        Parts come one after the other: along any axis but the first, each is turned before it is sent, and what has
        come is turned into the order of other arrays. What was sent is freed after that.
        """
        makes = self.values(equation.outvars)
        if equation.params["all_gather_dimension"] == 0:
            self.add(_Step("all_gather", tuple(reads), tuple(makes)))
            return makes
        parts, come = self.values([equation.invars[0], equation.outvars[0]])
        self.sizes[parts] = self.sizes[reads[0]]
        self.add(_Step(_TURN, tuple(reads), (parts,)))
        self.add(_Step("all_gather", (parts,), (come,)))
        self.add(_Step(_TURN, (come, parts), tuple(makes)))
        return makes

    def run(self, jaxpr: Jaxpr, arguments: Sequence[int]) -> list[int]:
        """Adds the steps of `jaxpr` and returns its results."""
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= dict(zip(jaxpr.constvars, self.values(jaxpr.constvars), strict=True))

        def read(atoms: Sequence[Any]) -> tuple[int, ...]:
            return tuple(self.values([one])[0] if isinstance(one, Literal) else known[one] for one in atoms)

        for equation in jaxpr.eqns:
            name, reads = equation.primitive.name, read(equation.invars)
            if name == "all_gather":
                makes = self.gathered.setdefault((reads, str(equation.params)), [])
                if not makes:  # else XLA finds that it has the same already
                    makes += self.gather(equation, reads)
            elif name in _CALLS:
                called = _open(equation.params[_CALLS[name]])
                if name == "shard_map":  # whose values are a device's parts of those outside
                    for one, part in zip(reads, called.invars, strict=True):
                        self.sizes[one] = _bytes(part.aval)
                makes = self.run(called, reads)
            else:
                makes = self.values(equation.outvars)
                self.add(_step(equation, reads, tuple(makes)))
            known |= dict(zip(equation.outvars, makes, strict=True))
        return list(read(jaxpr.outvars))


def usage(program: ClosedJaxpr, donated: Sequence[bool]) -> Usage:
    """Returns what a program takes of one device.

    Args:
        program: As `jax.make_jaxpr` returns it.
        donated: Whether each input gives its memory to the results.
    """
    read = _Program()
    inputs = read.values(program.jaxpr.invars)
    results = read.run(program.jaxpr, inputs)
    owned = {one for one, gone in zip(inputs, donated, strict=True) if gone}
    lives = _lives(read, owned, results)
    return Usage(tuple(read.sizes[one] for one in inputs), lives.most())


def _step(equation: Any, reads: tuple[int, ...], makes: tuple[int, ...]) -> _Step:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        body = _open(params["jaxpr"])
        # What has the same shape inside is a constant or the carry, of results the carry; others are stacks.
        whole = sum(map(_alike, equation.invars, body.invars))
        carried = sum(map(_alike, equation.outvars, body.outvars))
        becomes = dict(zip(makes[:carried], reads[whole - carried : whole], strict=True))
        return _Step(name, reads, makes, _turn(body, whole - carried, carried), becomes)
    if name == "while":
        body, first = _open(params["body_jaxpr"]), params["body_nconsts"]
        becomes = dict(zip(makes, reads[-len(makes) :], strict=True))
        return _Step(name, reads, makes, _turn(body, first, len(makes)), becomes)
    if name == "cond":
        branches = [_open(one) for one in params["branches"]]
        return _Step(name, reads, makes, max((_turn(one, len(one.invars), 0) for one in branches), key=_Lives.most))
    if name.startswith(("scatter", "dynamic_update_slice")):
        return _Step(name, reads, makes, becomes={makes[0]: reads[0]})
    return _Step(name, reads, makes)


def _turn(body: Jaxpr, constants: int, carried: int) -> _Lives:
    """Returns the buffers of one turn of a loop, whose carry and stacks exist already."""
    program = _Program()
    inputs = program.values(body.invars)
    program.later = set(inputs[constants + carried :])
    results = program.run(body, inputs)
    _store(program, results[carried:])
    return _lives(program, set(inputs[constants : constants + carried]), results[:carried])


def _store(program: _Program, values: Sequence[int]) -> None:
    """Puts values where they belong as soon as they are made."""
    made = {one for step in program.steps for one in step.makes}
    stored = [_Step(_STORE, tuple(set(values) - made), ())]
    for step in program.steps:
        stored.append(step)
        if found := set(values).intersection(step.makes):
            stored.append(_Step(_STORE, tuple(found), ()))
    program.steps = stored


def _lives(program: _Program, owned: set[int], results: Sequence[int]) -> "_Lives":
    """Returns when which buffers exist beside the inputs; results may take the place of `owned` inputs."""
    steps = _needed(program.steps, results)
    lies = _where(program, steps, results)
    steps = [step for step in steps if step.name == _STORE or any(lies[one] == (one,) for one in step.makes)]
    last = {place: number for number, step in enumerate(steps) for place in _places(step.reads, lies)}
    last |= dict.fromkeys(_places(results, lies), len(steps) - 1)
    begins = list(accumulate((max(step.inner.span, 1) for step in steps), initial=0))
    buffers: list[_Buffer] = []
    places: dict[int, _Buffer | None] = dict.fromkeys(owned)  # None is an input's own place
    for number, step in enumerate(steps):
        begin = begins[number]
        buffers += [_Buffer(one.size, one.begin + begin, one.end + begin) for one in step.inner.buffers]
        dying = [one for one in dict.fromkeys(_places(step.reads, lies)) if last[one] == number and one in places]
        for one in (made for made in step.makes if lies[made] == (made,)):
            if one in step.becomes:
                sources = [old for old in _places([step.becomes[one]], lies) if old in dying]
            else:
                sources = [old for old in dying if places[old] is None] if not step.writes else []
            old = next((old for old in sources if program.sizes[old] == program.sizes[one]), None)
            end = begins[last.get(one, number) + 1]
            if old is None:
                buffers.append(_Buffer(program.sizes[one], begin, end))
                places[one] = buffers[-1]
            else:
                dying.remove(old)
                places[one] = places[old]
                if (place := places[one]) is not None:
                    place.end = end
    return _Lives(buffers, begins[-1])


def _needed(steps: Sequence[_Step], results: Iterable[int]) -> list[_Step]:
    """Returns the steps that results depend on."""
    wanted, kept = set(results), []
    for step in reversed(steps):
        if step.name == _STORE or wanted.intersection(step.makes):
            wanted.update(step.reads)
            kept.append(step)
    return kept[::-1]


def _where(program: _Program, steps: Sequence[_Step], results: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Returns the buffers that every value lies in, or is computed from where it has none of its own."""
    written = set(results)
    view: dict[int, int] = {}
    for step in steps:
        if step.name in _VIEWS:
            sources = step.reads if len(step.reads) == len(step.makes) else step.reads[:1] * len(step.makes)
            view |= dict(zip(step.makes, sources, strict=True))
    for step in reversed(steps):
        written.update(() if step.fuses else step.reads[:1] if step.name == "gather" else step.reads)
        written.update(view[one] for one in step.makes if one in view and one in written)
    lies: dict[int, tuple[int, ...]] = {one: (one,) for one in range(len(program.sizes))}
    for step in steps:
        for one in step.makes:
            if one in view:
                lies[one] = lies[view[one]]
            elif not step.writes and one not in written:
                lies[one] = tuple(dict.fromkeys(_places(step.reads, lies)))
    return lies


def _places(values: Iterable[int], lies: dict[int, tuple[int, ...]]) -> Iterator[int]:
    for one in values:
        yield from lies[one]


def _alike(outside: Any, inside: Any) -> bool:
    return bool(outside.aval.shape == inside.aval.shape)


def _open(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _bytes(aval: Any) -> int:
    return int(aval.size) * int(aval.dtype.itemsize) if hasattr(aval, "dtype") else 0
