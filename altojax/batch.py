"""Host side of a step: each trial's next rows, laid out slot by slot in shapes that repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from altojax.step import Batch
from backbone.data import bucket_length, order


class Row(Protocol):
    """A text, or several packed into one row, ready to train on."""

    @property
    def tokens(self) -> np.ndarray:
        """int32 [length]."""

    @property
    def targets(self) -> np.ndarray:
        """Bool [length]: token t is to be predicted from what precedes it; never true at t = 0."""

    @property
    def positions(self) -> np.ndarray | None:
        """int32 [length] for packed rows, else None."""

    @property
    def segments(self) -> np.ndarray | None:
        """int32 [length] for packed rows, else None."""


@dataclass(frozen=True)
class Stream:
    """A trial's samples in the order it meets them: epoch after epoch, each in its own permutation by (seed, epoch).

    Attributes:
        rows: The task's training rows.
        seed: Orders the data; the trials of a task share it.
        total_samples: Where the trial's schedule ends.
        batch_size: Rows of a micro-batch.
        accumulation: Micro-batches of an optimizer step.
    """

    rows: Sequence[Row]
    seed: int
    total_samples: int
    batch_size: int
    accumulation: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return -(-self.total_samples // (self.batch_size * self.accumulation))

    def samples_after(self, step: int) -> int:
        """Samples seen once `step` optimizer steps are done."""
        return min(step * self.batch_size * self.accumulation, self.total_samples)

    def effective_batch(self, step: int) -> list[Row]:
        """The rows of optimizer step `step`, fewer than usual at the very end."""
        return [self._sample(i) for i in range(self.samples_after(step), self.samples_after(step + 1))]

    def micro_batches(self, step: int) -> int:
        """Micro-batches of optimizer step `step`."""
        return -(-(self.samples_after(step + 1) - self.samples_after(step)) // self.batch_size)

    def _sample(self, index: int) -> Row:
        epoch, place = divmod(index, len(self.rows))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = order(len(self.rows), self.seed, epoch)
        return self.rows[int(self._orders[epoch][place])]


@dataclass(frozen=True)
class Part:
    """What one slot brings to a batch.

    Attributes:
        slot: Its index.
        rows: Rows of this micro-batch.
        keys: Dropout key of each row.
        weight: Weight of each target's loss.
        begin: Whether this is the first micro-batch of an optimizer step.
        apply: Whether it is the last.
    """

    slot: int
    rows: Sequence[Row]
    keys: Sequence[int]
    weight: float
    begin: bool = True
    apply: bool = True


def next_part(slot: int, stream: Stream, seed: int, step: int, micro: int) -> Part:
    """Returns a trial's micro-batch `micro` of optimizer step `step`; it depends on the trial alone.

    Losses are averaged over the targets of the whole effective batch, so that accumulation changes nothing.
    """
    rows = stream.effective_batch(step)
    first = micro * stream.batch_size
    mine = rows[first : first + stream.batch_size]
    targets = sum(int(row.targets.sum()) for row in rows)
    keys = [row_key(seed, step, first + i) for i in range(len(mine))]
    return Part(slot, mine, keys, 1.0 / targets, micro == 0, first + len(mine) == len(rows))


def row_key(seed: int, step: int, row: int) -> int:
    """Returns the 32-bit dropout key of a row: a hash of (trial seed, optimizer step, row of the effective batch)."""
    return int.from_bytes(blake2b(f"{seed} {step} {row}".encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True, order=True)
class Shape:
    """The static shape of a batch, which is what a compiled step is for."""

    rows: int
    length: int
    targets: int


WASTE = 0.125
"""How much more, as a share of the step, a shape seen before may cost where compiling is cheap."""


class ShapeLadder:
    """Chooses batch shapes from few, so that steps repeat.

    Lengths and targets go up in buckets. Rows are rounded up to a multiple of the largest power of two not above the
    number of slots at work: fewer rows than slots are ever added, and their number is bounded.

    Where compiling is cheap, a shape seen before is taken again if it costs little more and keeps that bound. Where it
    is not, a batch takes the smallest shape seen that holds it, and what that computes beyond need is counted for each
    shape that would have saved some of it; one is made once it would have saved the price of its compilation (the rule
    for renting or buying skis: Karlin et al., Algorithmica 1988).

    Attributes:
        lengths: Length buckets, ascending, in tokens.
        seen: Shapes used so far.
        missed: By (rows, length) of a shape that some batch wanted: the tokens that having it would have saved since a
            shape was made last, and the most targets of those batches.
        most_tokens: rows · length that memory holds; None is any.
    """

    def __init__(
        self, lengths: Sequence[int], seen: Sequence[Shape] = (), *, least_slots: int = 1, compile_tokens: int = 0
    ):
        """Starts a ladder.

        Args:
            lengths: Length buckets, ascending, in tokens.
            seen: Shapes already used, for a run that goes on.
            least_slots: Rounds larger numbers of rows as for this many slots at work at least: fewer shapes.
            compile_tokens: Tokens that a step computes in the time of a compilation; 0 where compiling is cheap.
        """
        self.lengths = tuple(lengths)
        self.seen: list[Shape] = list(seen)
        self.missed: dict[tuple[int, int], tuple[int, int]] = {}
        self.most_tokens: int | None = None
        self._least_slots, self._compile_tokens = least_slots, compile_tokens

    def fit(self, rows: int, length: int, targets: int, slots: int) -> Shape:
        """Returns the shape for `rows` rows of at most `length` tokens with `targets` targets from `slots` slots."""
        bucket = bucket_length(length, self.lengths)
        return self.fit_any({one: rows for one in self.lengths if one >= bucket}, targets, slots)

    def fit_any(self, rows: Mapping[int, int], targets: int, slots: int) -> Shape:
        """Returns the shape for a batch that takes ``rows[length]`` rows where they have `length` tokens.

        Args:
            rows: For every length bucket that holds the longest text.
            targets: Targets of the batch.
            slots: Slots at work.
        """
        enough = _power_of_two(max(targets, 32))
        rounded = {length: self._rounded(count, slots, length) for length, count in rows.items()}
        length = min(rounded, key=lambda length: (rounded[length] * length, length))
        best = Shape(rounded[length], length, enough)
        fitting = [
            shape
            for shape in self.seen
            if shape.length in rows
            and rows[shape.length] <= shape.rows
            and enough <= shape.targets
            and self._holds(_tokens(shape))
        ]
        if self._compile_tokens:
            return self._rented(best, fitting, rows)
        alike = [
            shape
            for shape in fitting
            if shape.rows < rows[shape.length] + max(slots, 1)
            and shape.targets <= 4 * enough
            and _tokens(shape) <= (1 + WASTE) * _tokens(best)
        ]
        if alike:
            return min(alike, key=_cost)
        self.seen.append(best)
        return best

    def _rented(self, wanted: Shape, fitting: Sequence[Shape], rows: Mapping[int, int]) -> Shape:
        """Returns the smallest of the fitting shapes, or makes one that was missed for long enough."""
        if not fitting:
            self.seen.append(wanted)
            return wanted
        taken = min(fitting, key=_cost)
        self.missed.setdefault((wanted.rows, wanted.length), (0, wanted.targets))
        for (own_rows, length), (tokens, targets) in self.missed.items():
            saved = _tokens(taken) - own_rows * length
            if saved > 0 and length in rows and rows[length] <= own_rows:
                self.missed[own_rows, length] = tokens + saved, max(targets, wanted.targets)
        (own_rows, length), (tokens, targets) = max(self.missed.items(), key=lambda one: one[1])
        if tokens < self._compile_tokens or rows.get(length, own_rows + 1) > own_rows:
            return taken
        self.missed.clear()
        self.seen.append(Shape(own_rows, length, targets))
        return self.seen[-1]

    def _rounded(self, rows: int, slots: int, length: int) -> int:
        """Rounds rows up.

        As many as slots are at work decide how far; where compiling is dear, as many as the run has, and few rows go up
        to a power of two; but never beyond what memory holds.
        """
        if self._compile_tokens:
            coarse = _power_of_two(rows) if rows < self._least_slots else round_rows(rows, self._least_slots)
            if self._holds(coarse * length):
                return coarse
        return round_rows(rows, slots)

    def _holds(self, tokens: int) -> bool:
        return self.most_tokens is None or tokens <= self.most_tokens


def round_rows(rows: int, slots: int) -> int:
    """Rounds rows up to a multiple of the largest power of two that is at most `slots`."""
    grain = 1 << (max(slots, 1).bit_length() - 1)
    return -(-rows // grain) * grain


def share_rows(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Returns (row, first token) of each text where texts share rows of `room` tokens: the longest first, first fit.

    Args:
        lengths: Of the texts, in tokens.
        room: Tokens of a row, as many as the longest text at least.
    """
    places = [(0, 0)] * len(lengths)
    filled: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((row for row, used in enumerate(filled) if used + lengths[i] <= room), len(filled))
        if row == len(filled):
            filled.append(0)
        places[i] = row, filled[row]
        filled[row] += lengths[i]
    return places


def shared_rows(parts: Sequence[Part], length: int) -> int:
    """Returns the rows of `length` tokens that the parts take where texts of a slot share rows."""
    return sum(
        1 + max((row for row, _ in share_rows([len(one.tokens) for one in part.rows], length)), default=-1)
        for part in parts
    )


def lay_out(parts: Sequence[Part], shape: Shape, slots: int, *, packed: bool, shares: bool = False) -> Batch:
    """Returns the parts as one batch of `shape`, ordered by slot; what is left over is padding that weighs nothing.

    Args:
        parts: At most one a slot, with no more rows, tokens or targets than `shape` holds.
        shape: Static shape.
        slots: Slots of the executor.
        packed: Whether rows carry positions and segments.
        shares: Whether texts of a slot share rows; then they are not packed already, and nothing of them is dropped.
    """
    packed = packed or shares
    parts = sorted(parts, key=lambda part: part.slot)
    tokens: Any = np.zeros((shape.rows, shape.length), np.int32)
    positions: Any = np.zeros_like(tokens) if packed else None
    segments: Any = np.zeros_like(tokens) if packed else None
    row_slots: Any = np.full(shape.rows, parts[-1].slot, np.int32)
    row_keys: Any = np.zeros(shape.rows, np.uint32)
    at: Any = np.zeros(shape.targets, np.int32)
    ids: Any = np.zeros(shape.targets, np.int32)
    target_slots: Any = np.full(shape.targets, parts[0].slot, np.int32)
    weight: Any = np.zeros(shape.targets, np.float32)
    begin: Any = np.zeros(slots, bool)
    apply: Any = np.zeros(slots, bool)
    index = filled = 0
    for part in parts:
        begin[part.slot], apply[part.slot] = part.begin, part.apply
        sizes = [len(row.tokens) for row in part.rows]
        places = share_rows(sizes, shape.length) if shares else [(i, 0) for i in range(len(sizes))]
        for number, (row, key, size, (below, first)) in enumerate(
            zip(part.rows, part.keys, sizes, places, strict=True), start=1
        ):
            at_row, span = index + below, slice(first, first + size)
            tokens[at_row, span] = row.tokens
            row_slots[at_row], row_keys[at_row] = part.slot, key
            if positions is not None and segments is not None:
                positions[at_row, span] = row.positions if row.positions is not None else np.arange(size)
                segments[at_row, span] = row.segments if row.segments is not None else number
            learnt = np.flatnonzero(row.targets)
            own = slice(filled, filled + len(learnt))
            at[own] = at_row * shape.length + first + learnt - 1
            ids[own] = row.tokens[learnt]
            target_slots[own], weight[own] = part.slot, part.weight
            filled += len(learnt)
        index += 1 + max((below for below, _ in places), default=-1)
    return Batch(tokens, row_slots, row_keys, positions, segments, at, ids, target_slots, weight, begin, apply)


def size_of(parts: Sequence[Part]) -> tuple[int, int, int]:
    """Returns (rows, longest row in tokens, targets) of the parts together; zeros where there is none."""
    rows = [row for part in parts for row in part.rows]
    return len(rows), max((len(row.tokens) for row in rows), default=0), sum(int(row.targets.sum()) for row in rows)


def eval_parts(due: Sequence[tuple[int, Sequence[Row]]], rows_at_once: int) -> list[list[Part]]:
    """Cuts the validation rows of several slots into batches of at most `rows_at_once` rows, like lengths together.

    Args:
        due: (slot, its validation rows) for every slot to evaluate.
        rows_at_once: Rows of a batch.
    """
    pairs = [(len(row.tokens), slot, i, row) for slot, rows in due for i, row in enumerate(rows)]
    pairs.sort(key=lambda pair: pair[:3])
    batches = []
    for first in range(0, len(pairs), rows_at_once):
        by_slot: dict[int, list[Row]] = {}
        for _, slot, _, row in pairs[first : first + rows_at_once]:
            by_slot.setdefault(slot, []).append(row)
        batches.append([Part(slot, rows, [0] * len(rows), 1.0) for slot, rows in sorted(by_slot.items())])
    return batches


def _tokens(shape: Shape) -> int:
    return shape.rows * shape.length


def _cost(shape: Shape) -> tuple[int, int]:
    return _tokens(shape), shape.targets


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
