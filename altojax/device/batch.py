"""Host side of a step: each trial's next rows, laid out slot by slot in shapes that repeat."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from altojax.device.batch_shapes import Shape
from altojax.device.step import Batch
from jaxlm.data import bucket_length, order
from jaxrun.process.errors import UserError


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

    rows: Sequence[TokenRow]
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

    def effective_batch(self, step: int) -> list[TokenRow]:
        """The rows of optimizer step `step`, fewer than usual at the very end."""
        return [self._sample(i) for i in range(self.samples_after(step), self.samples_after(step + 1))]

    def _sample(self, index: int) -> TokenRow:
        epoch, place = divmod(index, len(self.rows))
        if epoch not in self._orders:
            for other in [other for other in self._orders if abs(other - epoch) > 1]:
                del self._orders[other]
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
    rows: Sequence[TokenRow]
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
    if not targets:
        raise UserError(f"step {step + 1} of {stream.total_steps}: {len(rows)} rows without a target, expected some")
    keys = [row_key(seed, step, first + i) for i in range(len(mine))]
    return Part(slot, mine, keys, 1.0 / targets, micro == 0, first + len(mine) == len(rows))


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
) -> list[list[Part]]:
    """Cuts the validation rows of several slots into batches of at most `rows_at_once` rows, like lengths together.

    Args:
        due: (slot, its validation rows) for every slot to evaluate.
        rows_at_once: Rows of a batch.
        lengths: Length buckets, ascending, in tokens.
        step_tokens: Tokens' worth of time that a batch takes whatever its tokens: shorter rows have one of their own
            where their padding would take longer. None has them fill up the batches of longer ones.
    """
    pairs = [(len(row.tokens), slot, i, row) for slot, rows in due for i, row in enumerate(rows)]
    pairs.sort(key=lambda pair: pair[:3])
    batches = []
    buckets = [0 if step_tokens is None else bucket_length(size, lengths) for size, *_ in pairs]
    for first, end in _cuts(buckets, rows_at_once, step_tokens or 0):
        by_slot: dict[int, list[TokenRow]] = {}
        for _, slot, _, row in pairs[first:end]:
            by_slot.setdefault(slot, []).append(row)
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
