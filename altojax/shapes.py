"""The static shapes of batches, which are what compiled steps are for: few, so that steps repeat."""

from dataclasses import dataclass, field

from backbone.data import bucket_length


@dataclass(frozen=True, order=True)
class Shape:
    """The static shape of a batch, which is what a compiled step is for."""

    rows: int
    length: int
    targets: int

    @property
    def cost(self) -> int:
        """What a step of this shape takes, in tokens; a target costs about as much as a token."""
        return self.rows * self.length + self.targets

    def holds(self, other: "Shape") -> bool:
        """Whether a batch of the other shape fits into this one."""
        return self.rows >= other.rows and self.length >= other.length and self.targets >= other.targets


@dataclass
class ShapeLadder:
    """Chooses batch shapes from few, so that steps repeat.

    Lengths and targets go up in buckets. Rows are rounded up to a multiple of the largest power of two not above the
    number of slots at work: fewer rows than slots are ever added, and their number is bounded. A shape seen before is
    taken again where it costs little more and keeps that bound.

    Where a compilation is dear, a larger shape that is there is taken too, until the padding of such batches has cost
    as much as the compilation that saves it: so both together never cost more than twice what the better of them would
    have (ski rental: Karlin et al., Algorithmica 1988). It depends on the batches alone, not on the clock.

    Attributes:
        lengths: Length buckets, ascending, in tokens.
        seen: Shapes used so far.
        patience_tokens: Padding in tokens that costs as much as a compilation; 0 compiles at once.
        least_slots: Where compiling is dear, rows are rounded as for this many slots at work, few to a power of two.
        most_tokens: rows · length that memory holds; None is any.
        owed: Padding so far of the batches that a shape not seen yet would have held.
    """

    lengths: tuple[int, ...]
    seen: list[Shape] = field(default_factory=list)
    patience_tokens: int = 0
    least_slots: int = 1
    most_tokens: int | None = None
    owed: dict[Shape, int] = field(default_factory=dict)

    def fit(self, rows: int, length: int, targets: int, slots: int) -> Shape:
        """Returns the shape for `rows` rows of at most `length` tokens with `targets` targets from `slots` slots."""
        bucket, enough = bucket_length(length, self.lengths), power_of_two(max(targets, 32))
        best = Shape(self._rounded(rows, slots, bucket), bucket, enough)
        least = Shape(rows, bucket, enough)
        usable = [shape for shape in self.seen if shape.holds(least) and self._fits(shape.rows * shape.length)]
        close = [
            shape
            for shape in usable
            if shape.rows < rows + max(slots, 1)
            and shape.targets <= 4 * enough
            and 8 * shape.rows * shape.length <= 9 * best.rows * best.length
        ]
        if close:
            return min(close, key=lambda shape: (shape.rows * shape.length, shape.targets))
        if usable:
            found = min(usable, key=lambda shape: (shape.cost, shape))
            owed = self.owed.get(best, 0) + found.cost - best.cost
            if owed < self.patience_tokens:
                self.owed[best] = owed
                return found
        self.owed.pop(best, None)
        self.seen.append(best)
        return best

    def soon(self) -> list[Shape]:
        """Returns the shapes that will be wanted if batches go on as they did: half of the patience is used up."""
        return [shape for shape, owed in self.owed.items() if 2 * owed >= self.patience_tokens]

    def _rounded(self, rows: int, slots: int, length: int) -> int:
        """Rounds rows as for the run's slots where compiling is dear, few rows to a power of two, if memory lets it."""
        if self.patience_tokens:
            coarse = power_of_two(rows) if rows < self.least_slots else round_rows(rows, self.least_slots)
            if self._fits(coarse * length):
                return coarse
        return round_rows(rows, slots)

    def _fits(self, tokens: int) -> bool:
        return self.most_tokens is None or tokens <= self.most_tokens


def round_rows(rows: int, slots: int) -> int:
    """Rounds rows up to a multiple of the largest power of two that is at most `slots`."""
    grain = 1 << (max(slots, 1).bit_length() - 1)
    return -(-rows // grain) * grain


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
