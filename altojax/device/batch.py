"""Host side of a step: each trial's next rows, laid out slot by slot in shapes that repeat."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from altojax.device.batch_shapes import Shape
from jaxlm.data.batching.buckets import bucket_length
from jaxlm.data.batching.order import order
from jaxrun.process.errors import UserError


@runtime_checkable
class TokenRow(Protocol):
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


class Batch(NamedTuple):
    """The rows of all slots, laid out slot by slot; see `lay_out`.

    Attributes:
        tokens: int32 [rows, length].
        row_slots: int32 [rows].
        row_keys: uint32 [rows], dropout keys.
        positions: int32 [rows, length] and
        segments: int32 [rows, length] for packed rows, else None.
        target_at: int32 [targets], flat index (row · length + t) of the hidden state that predicts the target.
        target_ids: int32 [targets].
        target_slots: int32 [targets].
        target_weight: float32 [targets], 1 / (targets in the slot's whole effective batch); 0 for padding.
        begin: bool [slots], slots whose accumulation starts with this batch.
        apply: bool [slots], slots that take an optimizer step after this batch.
        row_values: float32 [rows] each, numbers of rows that the objective reads, by name; 0 for padding.
    """

    tokens: Int[Array, "rows length"]
    row_slots: Int[Array, " rows"]
    row_keys: UInt32[Array, " rows"]
    positions: Int[Array, "rows length"] | None
    segments: Int[Array, "rows length"] | None
    target_at: Int[Array, " targets"]
    target_ids: Int[Array, " targets"]
    target_slots: Int[Array, " targets"]
    target_weight: Float[Array, " targets"]
    begin: Bool[Array, " slots"]
    apply: Bool[Array, " slots"]
    row_values: dict[str, Float[Array, " rows"]]


@runtime_checkable
class Samples(Protocol):
    """The samples of a task; the part of an objective that runs on the host."""

    @property
    def group(self) -> int:
        """Rows of a sample, a power of two.

        They follow one another in a task's rows, and stay together: in a micro-batch, on a device, in a batch of an
        evaluation.
        """

    def count(self, rows: Sequence[TokenRow]) -> int:
        """Returns the number that the loss of these rows is averaged over."""

    def row_values(self, part: "Part") -> Mapping[str, Sequence[float]]:
        """Returns numbers of each row of a part, by name; the names are the same for a part without rows."""


@dataclass(frozen=True)
class SingleRows:
    """Samples of one row each, whose loss is averaged over targets."""

    group: int = 1

    def count(self, rows: Sequence[TokenRow]) -> int:
        """Returns the number of targets."""
        return sum(int(row.targets.sum()) for row in rows)

    def row_values(self, part: "Part") -> Mapping[str, Sequence[float]]:
        """Returns nothing."""
        return {}


SINGLE_ROWS = SingleRows()


@dataclass(frozen=True)
class Stream:
    """A trial's samples in training order: epoch after epoch, each in its own permutation by (seed, epoch).

    Attributes:
        rows: The task's training rows, sample by sample.
        seed: Orders the data; the trials of a task share it.
        total_samples: Where the trial's schedule ends.
        batch_size: Samples of a micro-batch.
        accumulation: Micro-batches of an optimizer step.
        samples: The kind of sample.
    """

    rows: Sequence[TokenRow]
    seed: int
    total_samples: int
    batch_size: int
    accumulation: int
    samples: Samples = SINGLE_ROWS
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return -(-self.total_samples // (self.batch_size * self.accumulation))

    def samples_after(self, step: int) -> int:
        """Samples seen once `step` optimizer steps are done."""
        return min(step * self.batch_size * self.accumulation, self.total_samples)

    def effective_batch(self, step: int) -> list[TokenRow]:
        """The rows of optimizer step `step`, fewer than usual at the very end."""
        drawn = range(self.samples_after(step), self.samples_after(step + 1))
        return [row for i in drawn for row in self._sample(i)]

    def micro_batch(self, rows: Sequence[TokenRow], micro: int) -> Sequence[TokenRow]:
        """Returns the rows of micro-batch `micro` of an effective batch."""
        size = self.batch_size * self.samples.group
        return rows[micro * size : (micro + 1) * size]

    def _sample(self, index: int) -> Sequence[TokenRow]:
        group = self.samples.group
        epoch, place = divmod(index, len(self.rows) // group)
        if epoch not in self._orders:
            for other in [other for other in self._orders if abs(other - epoch) > 1]:
                del self._orders[other]
            self._orders[epoch] = order(len(self.rows) // group, self.seed, epoch)
        first = int(self._orders[epoch][place]) * group
        return self.rows[first : first + group]


@dataclass(frozen=True)
class Part:
    """One slot's part of a batch.

    Attributes:
        slot: Its index.
        rows: Rows of this micro-batch.
        keys: Dropout key of each row.
        weight: Weight of each target's loss.
        begin: Whether this is the first micro-batch of an optimizer step.
        apply: Whether it is the last.
    """

    slot: int
    rows: Sequence[TokenRow]
    keys: Sequence[int]
    weight: float
    begin: bool = True
    apply: bool = True


def next_part(slot: int, stream: Stream, seed: int, step: int, micro: int) -> Part:
    """Returns a trial's micro-batch `micro` of optimizer step `step`; it depends on the trial alone.

    Losses are averaged over the whole effective batch, so that accumulation changes nothing.
    """
    rows = stream.effective_batch(step)
    first = micro * stream.batch_size * stream.samples.group
    mine = stream.micro_batch(rows, micro)
    count = stream.samples.count(rows)
    if not count:
        raise UserError(f"step {step + 1} of {stream.total_steps}: {len(rows)} rows without a target, expected some")
    keys = [row_key(seed, step, first + i) for i in range(len(mine))]
    return Part(slot, mine, keys, 1.0 / count, micro == 0, first + len(mine) == len(rows))


def row_key(seed: int, step: int, row: int) -> int:
    """Returns the 32-bit dropout key of a row: a hash of (trial seed, optimizer step, row of the effective batch)."""
    return int.from_bytes(blake2b(f"{seed} {step} {row}".encode(), digest_size=4).digest(), "little")


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


def lay_out(
    parts: Sequence[Part],
    shape: Shape,
    slots: int,
    *,
    packed: bool,
    shares: bool = False,
    samples: Samples = SINGLE_ROWS,
) -> Batch:
    """Returns the parts as one batch of `shape`, ordered by slot; the rest is padding of weight zero.

    Args:
        parts: At most one a slot, with no more rows, tokens or targets than `shape` holds.
        shape: Static shape.
        slots: Slots of the executor.
        packed: Whether rows carry positions and segments.
        shares: Whether texts of a slot share rows; then they are not packed already, and nothing of them is dropped.
        samples: The kind of sample.
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
    values: Any = {name: np.zeros(shape.rows, np.float32) for name in samples.row_values(parts[0])}
    index = filled = 0
    for part in parts:
        begin[part.slot], apply[part.slot] = part.begin, part.apply
        for name, found in samples.row_values(part).items():
            values[name][index : index + len(part.rows)] = found
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
    return Batch(tokens, row_slots, row_keys, positions, segments, at, ids, target_slots, weight, begin, apply, values)


def usual_longest(lengths: Sequence[int], rows: int) -> int:
    """Returns the tokens that the longest of `rows` different rows of a task has on average, rounded up.

    Args:
        lengths: Of all rows of the task.
        rows: Of a batch.
    """
    ordered = np.sort(np.asarray(lengths, np.float64))
    below = np.arange(len(ordered) + 1, dtype=np.float64)
    drawn = np.arange(min(rows, len(ordered)), dtype=np.float64)[:, None]
    # Of k + 1 rows as short as the k-th, the chance that all that are drawn are among them.
    chance = np.prod(np.maximum(below[None, :] - drawn, 0) / (len(ordered) - drawn), axis=0)
    return math.ceil(float(np.sum(ordered * np.diff(chance))) - 1e-6)


def size_of(parts: Sequence[Part]) -> tuple[int, int, int]:
    """Returns (rows, longest row in tokens, targets) of the parts together; zeros where there is none."""
    rows = [row for part in parts for row in part.rows]
    return len(rows), max((len(row.tokens) for row in rows), default=0), sum(int(row.targets.sum()) for row in rows)


def eval_parts(
    due: Sequence[tuple[int, Sequence[TokenRow]]],
    rows_at_once: int,
    lengths: Sequence[int] = (),
    step_tokens: int | None = None,
    samples: Samples = SINGLE_ROWS,
) -> list[list[Part]]:
    """Cuts the validation rows of several slots into batches of at most `rows_at_once` rows, like lengths together.

    Args:
        due: (slot, its validation rows) for every slot to evaluate.
        rows_at_once: Rows of a batch.
        lengths: Length buckets, ascending, in tokens.
        step_tokens: Tokens' worth of time that a batch takes whatever its tokens: shorter rows have one of their own
            where their padding would take longer. None has them fill up the batches of longer ones.
        samples: The kind of sample.
    """
    group = samples.group
    cut = [(slot, i, rows[i : i + group]) for slot, rows in due for i in range(0, len(rows), group)]
    pairs = [(max(len(row.tokens) for row in own), slot, i, own) for slot, i, own in cut]
    pairs.sort(key=lambda pair: pair[:3])
    batches = []
    buckets = [0 if step_tokens is None else bucket_length(size, lengths) for size, *_ in pairs]
    for first, end in _cuts(buckets, max(1, rows_at_once // group), (step_tokens or 0) // group):
        by_slot: dict[int, list[TokenRow]] = {}
        for _, slot, _, own in pairs[first:end]:
            by_slot.setdefault(slot, []).extend(own)
        batches.append([Part(slot, rows, [0] * len(rows), 1.0) for slot, rows in sorted(by_slot.items())])
    return batches


def _cuts(buckets: Sequence[int], rows_at_once: int, step_tokens: int) -> list[tuple[int, int]]:
    """Returns where batches of rows begin and end such that they take the least time: full ones, or of one length.

    Args:
        buckets: Of the rows, ascending.
        rows_at_once: Rows of a batch.
        step_tokens: Tokens' worth of time that a batch takes whatever its tokens.
    """
    longer = [at for at in range(1, len(buckets)) if buckets[at - 1] < buckets[at]]
    # The cheapest way to come to a row: (tokens' worth of time, where the last batch before it begins).
    cheapest = {0: (0, 0)}
    for first in range(len(buckets)):
        if first not in cheapest:
            continue
        last = min(first + rows_at_once, len(buckets))
        for end in (last, *longer[bisect_right(longer, first) : bisect_left(longer, last)]):
            cost = cheapest[first][0] + step_tokens + (end - first) * buckets[end - 1]
            cheapest[end] = min(cheapest.get(end, (cost, first)), (cost, first))
    cuts: list[tuple[int, int]] = []
    end = len(buckets)
    while end:
        cuts.append((cheapest[end][1], end))
        end = cheapest[end][1]
    return cuts[::-1]
