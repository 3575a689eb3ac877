"""Host side of a step: each trial's next rows, laid out slot by slot in shapes that repeat."""

from collections.abc import Sequence
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
    is not, a batch takes the smallest shape seen that holds it, and what that computes beyond need is counted; a new
    shape is made once its count has reached the price of a compilation. So no more is lost to padding than twice what
    knowing the whole run beforehand would lose (the ski-rental rule: Karlin et al., Algorithmica 1988).

    Attributes:
        lengths: Length buckets, ascending, in tokens.
        seen: Shapes used so far.
        owed_tokens: Tokens computed beyond need for want of a shape, by its (rows, length).
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
        self.owed_tokens: dict[tuple[int, int], int] = {}
        self.most_tokens: int | None = None
        self._least_slots, self._compile_tokens = least_slots, compile_tokens

    def fit(self, rows: int, length: int, targets: int, slots: int) -> Shape:
        """Returns the shape for `rows` rows of at most `length` tokens with `targets` targets from `slots` slots."""
        bucket, enough = bucket_length(length, self.lengths), _power_of_two(max(targets, 32))
        if self._compile_tokens:
            return self._rented(Shape(self._coarse(rows, slots, bucket), bucket, enough), rows)
        best = Shape(round_rows(rows, slots), bucket, enough)
        fitting = [
            shape
            for shape in self.seen
            if rows <= shape.rows < rows + max(slots, 1)
            and shape.length >= bucket
            and enough <= shape.targets <= 4 * enough
            and _tokens(shape) <= (1 + WASTE) * _tokens(best)
            and self._holds(_tokens(shape))
        ]
        if fitting:
            return min(fitting, key=lambda shape: (_tokens(shape), shape.targets))
        self.seen.append(best)
        return best

    def _rented(self, wanted: Shape, rows: int) -> Shape:
        """Returns the smallest shape seen that holds the batch, or `wanted` once it was missed for long enough."""
        fitting = [
            shape
            for shape in self.seen
            if shape.rows >= rows
            and shape.length >= wanted.length
            and shape.targets >= wanted.targets
            and self._holds(_tokens(shape))
        ]
        if fitting:
            taken = min(fitting, key=lambda shape: (_tokens(shape), shape.targets))
            key = (wanted.rows, wanted.length)
            owed = self.owed_tokens.get(key, 0) + max(0, _tokens(taken) - _tokens(wanted))
            if owed < self._compile_tokens:
                self.owed_tokens[key] = owed
                return taken
            self.owed_tokens.pop(key, None)
        self.seen.append(wanted)
        return wanted

    def _coarse(self, rows: int, slots: int, length: int) -> int:
        """Rounds rows to a multiple of the run's slots, few rows to a power of two; only as far as memory goes."""
        coarse = _power_of_two(rows) if rows < self._least_slots else round_rows(rows, self._least_slots)
        return coarse if self._holds(coarse * length) else round_rows(rows, slots)

    def _holds(self, tokens: int) -> bool:
        return self.most_tokens is None or tokens <= self.most_tokens


def round_rows(rows: int, slots: int) -> int:
    """Rounds rows up to a multiple of the largest power of two that is at most `slots`."""
    grain = 1 << (max(slots, 1).bit_length() - 1)
    return -(-rows // grain) * grain


def lay_out(parts: Sequence[Part], shape: Shape, slots: int, *, packed: bool) -> Batch:
    """Returns the parts as one batch of `shape`, ordered by slot; what is left over is padding that weighs nothing.

    Args:
        parts: At most one a slot, with no more rows, tokens or targets than `shape` holds.
        shape: Static shape.
        slots: Slots of the executor.
        packed: Whether rows carry positions and segments.
    """
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
        for row, key in zip(part.rows, part.keys, strict=True):
            length = len(row.tokens)
            tokens[index, :length] = row.tokens
            row_slots[index], row_keys[index] = part.slot, key
            if positions is not None and segments is not None:
                positions[index, :length] = row.positions if row.positions is not None else np.arange(length)
                segments[index, :length] = row.segments if row.segments is not None else 1
            places = np.flatnonzero(row.targets)
            span = slice(filled, filled + len(places))
            at[span] = index * shape.length + places - 1
            ids[span] = row.tokens[places]
            target_slots[span], weight[span] = part.slot, part.weight
            filled += len(places)
            index += 1
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


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
