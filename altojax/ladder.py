"""The static shapes of batches: few of them, so that compiled steps repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backbone.data import bucket_length


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
        least_slots: Where compiling is dear, larger numbers of rows are rounded as for this many slots at work.
        compile_tokens: Tokens that a step computes in the time of a compilation; 0 where compiling is cheap.
    """

    def __init__(
        self, lengths: Sequence[int], seen: Sequence[Shape] = (), *, least_slots: int = 1, compile_tokens: int = 0
    ):
        """Starts a ladder.

        Args:
            lengths: Length buckets, ascending, in tokens.
            seen: Shapes already used, for a run that goes on.
            least_slots: See above.
            compile_tokens: See above.
        """
        self.lengths = tuple(lengths)
        self.seen: list[Shape] = list(seen)
        self.missed: dict[tuple[int, int], tuple[int, int]] = {}
        self.most_tokens: int | None = None
        self.least_slots, self.compile_tokens = least_slots, compile_tokens

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
        enough = power_of_two(max(targets, 32))
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
        if self.compile_tokens:
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

    def soon(self) -> Shape | None:
        """Returns the shape that will be made next if batches go on as they did, once half of its price is missed."""
        (rows, length), (tokens, targets) = max(self.missed.items(), key=lambda one: one[1], default=((0, 0), (0, 0)))
        return Shape(rows, length, targets) if 0 < self.compile_tokens <= 2 * tokens else None

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
        if tokens < self.compile_tokens or rows.get(length, own_rows + 1) > own_rows:
            return taken
        self.missed.clear()
        self.seen.append(Shape(own_rows, length, targets))
        return self.seen[-1]

    def _rounded(self, rows: int, slots: int, length: int) -> int:
        """Rounds rows up.

        As many as slots are at work decide how far; where compiling is dear, as many as the run has, and few rows go up
        to a power of two; but never beyond what memory holds.
        """
        if self.compile_tokens:
            coarse = power_of_two(rows) if rows < self.least_slots else round_rows(rows, self.least_slots)
            if self._holds(coarse * length):
                return coarse
        return round_rows(rows, slots)

    def _holds(self, tokens: int) -> bool:
        return self.most_tokens is None or tokens <= self.most_tokens


def expected_shape(rows: int, length: int, row_targets: float) -> Shape:
    """Returns the shape for `rows` rows of `length` tokens that have `row_targets` targets each on average."""
    return Shape(rows, length, power_of_two(max(32, round(rows * row_targets))))


def round_rows(rows: int, slots: int) -> int:
    """Rounds rows up to a multiple of the largest power of two that is at most `slots`."""
    grain = 1 << (max(slots, 1).bit_length() - 1)
    return -(-rows // grain) * grain


def _tokens(shape: Shape) -> int:
    return shape.rows * shape.length


def _cost(shape: Shape) -> tuple[int, int]:
    return _tokens(shape), shape.targets


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
