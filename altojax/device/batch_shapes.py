"""The static shapes of batches: few of them, so that compiled steps repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


@dataclass(frozen=True, order=True)
class Shape:
    """The static shape of a batch; a step is compiled for each. All rows of a run have one length."""

    rows: int
    length: int
    targets: int

    @property
    def tokens(self) -> int:
        """Tokens that it computes, padding included."""
        return self.rows * self.length

    def holds(self, need: "Need") -> bool:
        """Whether a batch fits."""
        return need.rows <= self.rows and need.targets <= self.targets


WASTE = 0.125
"""Extra cost, as a share of the step, of a shape seen before that is taken where compiling is cheap."""
WORTH = 0.15
"""The share of its compilation that a shape must save the batches to come: it is compiled beside the training."""
HORIZON, REACH = 512, 4
"""Steps to come that a shape is chosen by: at least the first; else as many as take the second times a compilation."""


class Need(NamedTuple):
    """The least shape of a batch.

    Attributes:
        rows: That it takes.
        targets: Its targets.
    """

    rows: int
    targets: int


class ShapeLadder:
    """Chooses batch shapes from few, so that steps repeat.

    Rows go up by an eighth at most, targets in powers of two. Where compiling is cheap, a shape seen before is
    taken again if it costs little more. Where it is expensive, a batch takes the smallest shape seen that holds it; one
    that saves the batches to come enough is compiled beside the training, and may be taken once steps have computed as
    much as they do in the time of a compilation.

    Attributes:
        seen: Shapes used so far.
        coming: The shape that is foreseen, and the tokens' worth of time since; None is none.
        most_rows: That memory holds; None is any.
        length: Tokens of a row.
        compile_tokens: Tokens that steps compute in the time of a compilation; 0 where compiling is cheap.
        step_tokens: Tokens' worth of time that a step takes whatever its tokens.
        padding: The time of a row that a batch leaves empty, of the time of another.
    """

    def __init__(self, length: int, *, compile_tokens: int = 0, step_tokens: int = 0, padding: float = 1.0):
        """Starts a ladder of no shapes; see above."""
        self.length, self.seen = length, list[Shape]()
        self.coming: tuple[Shape, int] | None = None
        self.most_rows: int | None = None
        self.compile_tokens, self.step_tokens, self.padding = compile_tokens, step_tokens, padding

    def cost(self, need: Need, shape: Shape) -> int:
        """Returns the tokens' worth of time that a batch takes in a shape."""
        own = need.rows * self.length
        return self.step_tokens + own + round(self.padding * (shape.tokens - own))

    def fit(self, need: Need) -> Shape:
        """Returns a shape that holds a batch."""
        own = self._own(need)
        taken = min((shape for shape in self._fitting(need) if self._alike(shape, own)), key=_cost, default=own)
        if taken not in self.seen:
            self.seen.append(taken)
        return taken

    def looks(self) -> bool:
        """Whether `look` would look: compiling is expensive, and no shape is coming."""
        return self.compile_tokens > 0 and self.coming is None

    def look(self, ahead: Sequence[Need], times: float, delay_tokens: int) -> None:
        """Foresees the shape that saves the batches to come most, where it is worth its compilation.

        Nothing is foreseen where compiling is cheap, or while another is coming.

        Args:
            ahead: What batches to come need, in their order.
            times: How many batches each of them stands for.
            delay_tokens: Tokens' worth of time until a new shape is compiled.
        """
        if not self.looks():
            return
        taken = [min(self._fitting(need), key=_cost, default=self._own(need)) for need in ahead]
        costs = [self.cost(*pair) for pair in zip(ahead, taken, strict=True)]
        begun = accumulate((one * times for one in costs), initial=0)
        later = [pair for pair, at in zip(zip(ahead, costs, strict=True), begun, strict=False) if at >= delay_tokens]
        best = max(self._wanted(later), key=lambda shape: (self._saved(shape, later), -shape.tokens), default=None)
        if best is not None and self._saved(best, later) * times >= WORTH * self.compile_tokens:
            self.coming = best, 0

    def passes(self, tokens: int) -> None:
        """Lets time pass, by the tokens that it takes to compute; a shape that was coming long enough is added."""
        if self.coming is None:
            return
        shape, since = self.coming
        self.coming = shape, since + tokens
        if since + tokens >= self.compile_tokens:
            self.coming = None
            if shape not in self.seen:
                self.seen.append(shape)

    def reach(self) -> int:
        """Returns how many steps to come a shape should be chosen by."""
        least = min((shape.tokens for shape in self.seen), default=1) + self.step_tokens
        return max(HORIZON, REACH * self.compile_tokens // least)

    def soon(self) -> Shape | None:
        """Returns the shape that is coming."""
        return None if self.coming is None else self.coming[0]

    def _own(self, need: Need) -> Shape:
        """Returns the smallest shape that could be made for a batch."""
        return Shape(self._rounded(need.rows), self.length, power_of_two(max(need.targets, 32)))

    def _fitting(self, need: Need) -> list[Shape]:
        most = self.most_rows
        return [shape for shape in self.seen if shape.holds(need) and (most is None or shape.rows <= most)]

    def _rounded(self, rows: int) -> int:
        """Rounds rows up, but not beyond memory."""
        return rounded(rows) if self.most_rows is None else max(rows, min(rounded(rows), self.most_rows))

    def _alike(self, shape: Shape, own: Shape) -> bool:
        """Whether a shape that holds a batch is taken rather than one of its own."""
        if self.compile_tokens:
            return True
        return shape.tokens <= (1 + WASTE) * own.tokens and shape.targets <= 4 * own.targets

    def _saved(self, shape: Shape, batches: Sequence[tuple[Need, int]]) -> int:
        """Returns the tokens' worth of time that `shape` saves, given (need, what it costs without) of each batch."""
        return sum(max(0, cost - self.cost(need, shape)) for need, cost in batches if shape.holds(need))

    def _wanted(self, ahead: Sequence[tuple[Need, int]]) -> list[Shape]:
        """Returns the shapes that any of the batches would have, with the targets of the most that fit in there."""
        wanted = []
        for rows in sorted({self._rounded(need.rows) for need, _ in ahead}):
            targets = max(need.targets for need, _ in ahead if need.rows <= rows)
            shape = Shape(rows, self.length, power_of_two(max(targets, 32)))
            if shape not in self.seen:
                wanted.append(shape)
        return wanted


def expected_shape(rows: int, length: int, token_targets: float) -> Shape:
    """Returns the shape for `rows` rows of `length` tokens, of which the share `token_targets` are targets."""
    return Shape(rows, length, power_of_two(max(32, round(rows * length * token_targets))))


def rounded(rows: int) -> int:
    """Rounds rows up to sixteenths of the next power of two, by an eighth at most."""
    grain = max(1, power_of_two(rows) // 16)
    return -(-rows // grain) * grain


def _cost(shape: Shape) -> tuple[int, int]:
    return shape.tokens, shape.targets


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
