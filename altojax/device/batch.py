"""Host side of a step: each trial's next samples, laid out in rows that trials share, in shapes that repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from altojax.device.batch_shapes import Shape
from jaxlm.data.batching.order import order
from jaxlm.data.batching.row_layout import RowGeometry, Size, cut, geometry_of, lay
from jaxrun.process.errors import UserError
from pallas_kernels import token_seeds

CPU_TILE, DEVICE_TILE = 16, 128
"""Tokens of a tile: as few as gathering an adapter for each repays, and what the kernels of a GPU take."""
CPU_ROW, DEVICE_ROW = 128, 512
"""Tokens of a row, at least: longer rows are filled better, of shorter ones a small step computes fewer tokens."""


@runtime_checkable
class TokenRow(Protocol):
    """A text, or several packed one after the other, ready to train on."""

    @property
    def tokens(self) -> np.ndarray:
        """int32 [length]."""

    @property
    def targets(self) -> np.ndarray:
        """Bool [length]: token t is to be predicted from what precedes it; never true at t = 0."""

    @property
    def begins(self) -> Sequence[int]:
        """The first token of each of its texts, ascending from 0."""


class Batch(NamedTuple):
    """The samples of all slots, laid out in rows; see `lay_out`.

    Texts of a slot share tiles, and slots share rows. Token rows are those of the parts, slot by slot.

    Attributes:
        tokens: int32 [rows, length].
        begins: int32 [rows, texts], the first token of each text of a row; `length` for those that it lacks.
        sizes: int32 [rows, texts], tokens of each text; 0 for those that it lacks.
        tile_slots: int32 [tiles], the slot of each tile of all rows.
        token_seeds: uint32 [rows, length], of dropout, or None where nothing drops.
        target_at: int32 [targets], flat index (row · length + t) of the hidden state that predicts the target.
        target_ids: int32 [targets].
        target_slots: int32 [targets].
        target_rows: int32 [targets], its token row.
        target_weight: float32 [targets], 1 / (targets in the slot's whole effective batch); 0 for padding.
        begin: bool [slots], slots whose accumulation starts with this batch.
        apply: bool [slots], slots that take an optimizer step after this batch.
        row_slots: int32 [token_rows].
        row_values: float32 [token_rows] each, numbers of rows that the objective reads, by name; 0 for padding.
    """

    tokens: Int[Array, "rows length"]
    begins: Int[Array, "rows texts"]
    sizes: Int[Array, "rows texts"]
    tile_slots: Int[Array, " tiles"]
    token_seeds: UInt32[Array, "rows length"] | None
    target_at: Int[Array, " targets"]
    target_ids: Int[Array, " targets"]
    target_slots: Int[Array, " targets"]
    target_rows: Int[Array, " targets"]
    target_weight: Float[Array, " targets"]
    begin: Bool[Array, " slots"]
    apply: Bool[Array, " slots"]
    row_slots: Int[Array, " token_rows"]
    row_values: dict[str, Float[Array, " token_rows"]]

    def live_tiles(self) -> Int[Array, ""]:
        """Returns how many tiles there are up to the end of the last text; those behind it are padding alone."""
        rows, length = self.tokens.shape
        first = jnp.arange(rows, dtype=jnp.int32)[:, None] * jnp.int32(length)
        last = jnp.max(jnp.where(self.sizes > 0, first + self.begins + self.sizes, 0))
        tile = jnp.int32(rows * length // self.tile_slots.shape[0])
        return -(-last // tile)


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
        whole: Rows of the whole effective batch, or of the whole evaluation, that it is a part of.
    """

    slot: int
    rows: Sequence[TokenRow]
    keys: Sequence[int]
    weight: float
    begin: bool = True
    apply: bool = True
    whole: Sequence[TokenRow] = ()


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
    return Part(slot, mine, keys, 1.0 / count, micro == 0, first + len(mine) == len(rows), rows)


def row_key(seed: int, step: int, row: int) -> int:
    """Returns the 32-bit dropout key of a row: a hash of (trial seed, optimizer step, row of the effective batch)."""
    return int.from_bytes(blake2b(f"{seed} {step} {row}".encode(), digest_size=4).digest(), "little")


def rows_here(sizes: Sequence[Sequence[int]], most_texts: int = 1) -> RowGeometry:
    """Returns the rows for texts of these sizes, by task, on the default device; see `geometry_of`."""
    tile, least = (CPU_TILE, CPU_ROW) if jax.default_backend() == "cpu" else (DEVICE_TILE, DEVICE_ROW)
    return geometry_of(sizes, most_texts, tile=tile, least=least)


def sizes_of(parts: Sequence[Part]) -> tuple[tuple[Size, ...], ...]:
    """Returns the tokens and texts of every row of every part."""
    return tuple(tuple((len(row.tokens), len(row.begins)) for row in part.rows) for part in parts)


def lay_out(
    parts: Sequence[Part],
    shape: Shape,
    slots: int,
    geometry: RowGeometry,
    *,
    drops: bool,
    samples: Samples = SINGLE_ROWS,
) -> Batch:
    """Returns the parts as one batch of `shape`; the rest is padding of weight zero.

    What pads a tile, and empty tiles behind it, belong to the last text before them.

    Args:
        parts: At most one a slot, with no more rows or targets than `shape` holds.
        shape: Static shape.
        slots: Slots of the executor.
        geometry: Of the rows.
        drops: Whether anything is dropped now.
        samples: The kind of sample.
    """
    parts = sorted(parts, key=lambda part: part.slot)
    _, placed = lay(geometry, sizes_of(parts), samples.group)
    length, most = shape.length, shape.rows * geometry.texts
    tokens: Any = np.zeros((shape.rows, length), np.int32)
    tile_slots: Any = np.full((shape.rows, geometry.tiles), -1, np.int32)
    seeds: Any = np.zeros((shape.rows, length), np.uint32) if drops else None
    at: Any = np.zeros(shape.targets, np.int32)
    ids: Any = np.zeros(shape.targets, np.int32)
    target_slots: Any = np.full(shape.targets, parts[0].slot, np.int32)
    target_rows: Any = np.zeros(shape.targets, np.int32)
    weight: Any = np.zeros(shape.targets, np.float32)
    begin: Any = np.zeros(slots, bool)
    apply: Any = np.zeros(slots, bool)
    row_slots: Any = np.full(most, parts[-1].slot, np.int32)
    values: Any = {name: np.zeros(most, np.float32) for name in samples.row_values(parts[0])}
    begun: list[list[tuple[int, int]]] = [[] for _ in range(shape.rows)]
    number = filled = 0
    for part, places in zip(parts, placed, strict=True):
        begin[part.slot], apply[part.slot] = part.begin, part.apply
        own_rows = slice(number, number + len(part.rows))
        row_slots[own_rows] = part.slot
        for name, found in samples.row_values(part).items():
            values[name][own_rows] = found
        for row, key, (at_row, first) in zip(part.rows, part.keys, places, strict=True):
            size = len(row.tokens)
            tokens[at_row, first : first + size] = row.tokens
            tile_slots[at_row, first // geometry.tile : -(-(first + size) // geometry.tile)] = part.slot
            ends = (*row.begins[1:], size)
            begun[at_row] += [(first + text, end - text) for text, end in zip(row.begins, ends, strict=True)]
            if seeds is not None:
                seeds[at_row, first : first + size] = token_seeds(key, size)
            learnt = np.flatnonzero(row.targets)
            own = slice(filled, filled + len(learnt))
            at[own] = at_row * length + first + learnt - 1
            ids[own] = row.tokens[learnt]
            target_slots[own], target_rows[own], weight[own] = part.slot, number, part.weight
            filled, number = filled + len(learnt), number + 1
    begins: Any = np.full((shape.rows, geometry.texts), length, np.int32)
    begins[:, 0] = 0
    text_sizes: Any = np.zeros((shape.rows, geometry.texts), np.int32)
    for at_row, texts in enumerate(begun):
        if texts:
            begins[at_row, : len(texts)], text_sizes[at_row, : len(texts)] = zip(*sorted(texts), strict=True)
    return Batch(
        tokens,
        begins,
        text_sizes,
        _owned(tile_slots, parts[-1].slot).reshape(-1),
        seeds,
        at,
        ids,
        target_slots,
        target_rows,
        weight,
        begin,
        apply,
        row_slots,
        values,
    )


def _owned(tile_slots: Any, otherwise: int) -> Any:
    """Gives tiles that hold nothing, -1, to the slot of those before them in their row; int32 [rows, tiles]."""
    for tile in range(tile_slots.shape[1]):
        before = tile_slots[:, tile - 1] if tile else np.full(len(tile_slots), otherwise, np.int32)
        tile_slots[:, tile] = np.where(tile_slots[:, tile] < 0, before, tile_slots[:, tile])
    return tile_slots


def need_of(parts: Sequence[Part], geometry: RowGeometry, samples: Samples = SINGLE_ROWS) -> tuple[int, int]:
    """Returns the rows that the parts take together, and their targets."""
    ordered = sorted(parts, key=lambda part: part.slot)
    rows, _ = lay(geometry, sizes_of(ordered), samples.group)
    return rows, sum(int(row.targets.sum()) for part in parts for row in part.rows)


def tokens_of(part: Part, geometry: RowGeometry, samples: Samples = SINGLE_ROWS) -> int:
    """Returns the tokens of the tiles that a part takes by itself."""
    _, (places,) = lay(geometry, sizes_of([part]), samples.group)
    ends: dict[int, int] = {}
    for row, (at_row, first) in zip(part.rows, places, strict=True):
        ends[at_row] = max(ends.get(at_row, 0), first + len(row.tokens))
    return sum(geometry.whole_tiles(end) for end in ends.values())


def eval_parts(
    due: Sequence[tuple[int, Sequence[TokenRow]]],
    geometry: RowGeometry,
    most_rows: int,
    samples: Samples = SINGLE_ROWS,
) -> list[list[Part]]:
    """Cuts the validation rows of several slots into batches of at most `most_rows` rows.

    Args:
        due: (slot, its validation rows) for every slot to evaluate.
        geometry: Of the rows.
        most_rows: Of a batch.
        samples: The kind of sample.
    """
    rows = dict(due)
    sizes = {slot: [(len(row.tokens), len(row.begins)) for row in own] for slot, own in sorted(rows.items())}

    def part(slot: int, texts: Sequence[int]) -> Part:
        return Part(slot, [rows[slot][text] for text in texts], [0] * len(texts), 1.0, whole=rows[slot])

    batches = cut(geometry, sizes, most_rows, samples.group)
    return [[part(slot, texts) for slot, texts in batch.items()] for batch in batches]
