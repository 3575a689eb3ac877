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
FORESEEN = 0.1
"""The share of its compilation that a shape must have been worth before it is compiled."""


class ShapeLadder:
    """Chooses batch shapes from few, so that steps repeat.

    Lengths and targets go up in buckets. Where compiling is cheap, rows are rounded up to a multiple of the largest
    power of two not above the number of slots at work: fewer rows than slots are ever added, and their number is
    bounded. A shape seen before is taken again if it costs little more and keeps that bound.

    Where compiling is dear, rows go up in eighths of a power of two, and a batch takes the smallest shape seen that
    holds it. What that computes beyond need is counted for each shape that would have saved some of it. The one that
    would have saved most is foreseen once that is a tenth of the price of its compilation: the rule for renting or
    buying skis (Karlin et al., Algorithmica 1988) asks for all of it, but this is compiled beside the training. It is
    made when as much has been computed as there is time for meanwhile.

    Attributes:
        lengths: Length buckets, ascending, in tokens.
        seen: Shapes used so far.
        missed: By (rows, length) of a shape that some batch wanted: the tokens that having it would have saved since a
            shape was made last, and the most targets of those batches.
        coming: The shape that is foreseen, and the tokens' worth of time since; None is none.
        most_tokens: rows · length that memory holds; None is any.
        compile_tokens: Tokens that steps compute in the time of a compilation; 0 where compiling is cheap.
        step_tokens: Tokens' worth of time that a step takes whatever its tokens.
    """

    def __init__(
        self, lengths: Sequence[int], seen: Sequence[Shape] = (), *, compile_tokens: int = 0, step_tokens: int = 0
    ):
        """Starts a ladder.

        Args:
            lengths: Length buckets, ascending, in tokens.
            seen: Shapes already used, for a run that goes on.
            compile_tokens: See above.
            step_tokens: See above.
        """
        self.lengths = tuple(lengths)
        self.seen: list[Shape] = list(seen)
        self.missed: dict[tuple[int, int], tuple[int, int]] = {}
        self.coming: tuple[Shape, int] | None = None
        self.most_tokens: int | None = None
        self.compile_tokens, self.step_tokens = compile_tokens, step_tokens

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
        """Returns the shape that is foreseen, which is made next if batches go on as they did."""
        return None if self.coming is None else self.coming[0]

    def _rented(self, wanted: Shape, fitting: Sequence[Shape], rows: Mapping[int, int]) -> Shape:
        """Returns the smallest of the fitting shapes, or makes the one that was foreseen long enough ago."""
        if not fitting:
            self.seen.append(wanted)
            return wanted
        taken = min(fitting, key=_cost)
        self.missed.setdefault((wanted.rows, wanted.length), (0, wanted.targets))
        for (own_rows, length), (tokens, targets) in self.missed.items():
            saved = _tokens(taken) - own_rows * length
            if saved > 0 and length in rows and rows[length] <= own_rows:
                self.missed[own_rows, length] = tokens + saved, max(targets, wanted.targets)
        if self.coming is None:
            self._foresee()
        else:
            taken = self._made(taken, wanted.targets, rows)
        return taken

    def _foresee(self) -> None:
        (rows, length), (tokens, targets) = max(self.missed.items(), key=lambda one: one[1])
        if tokens >= FORESEEN * self.compile_tokens:
            self.coming = Shape(rows, length, targets), 0

    def _made(self, taken: Shape, targets: int, rows: Mapping[int, int]) -> Shape:
        """Returns the foreseen shape once there was time to compile it, for a batch that it serves better; or `taken`.

        One that no batch wants for twice that time is given up.
        """
        assert self.coming is not None
        shape, computed = self.coming
        holds = shape.length in rows and rows[shape.length] <= shape.rows and targets <= shape.targets
        ready = computed >= self.compile_tokens
        if ready and holds and _cost(shape) < _cost(taken):
            self.seen.append(shape)
            taken = shape
        elif computed < 2 * self.compile_tokens:
            self.coming = shape, computed + _tokens(taken) + self.step_tokens
            return taken
        self.coming = None
        self.missed.clear()
        return taken

    def _rounded(self, rows: int, slots: int, length: int) -> int:
        """Rounds rows up: by slots at work, or in eighths where compiling is dear; never beyond what memory holds."""
        if self.compile_tokens:
            grain = max(1, power_of_two(rows) // 8)
            coarse = -(-rows // grain) * grain
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
