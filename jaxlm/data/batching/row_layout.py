"""Where the texts of a batch lie: rows that they share, cut into tiles of one owner each. Pure arithmetic on sizes.

The products of a step work on tiles, whose adapter is one trial's; attention works on rows, within each text. So texts
of one owner may share a tile, and owners a row, and what a step computes beside its texts is the end of an owner's
last tile in a row and the end of the row.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True)
class RowGeometry:
    """The rows of all batches of a run.

    Attributes:
        length: Tokens of a row, whole tiles.
        tile: Tokens of a tile.
        texts: The most texts of a row.
    """

    length: int
    tile: int
    texts: int

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return self.length // self.tile

    def whole_tiles(self, tokens: int) -> int:
        """Rounds tokens up to whole tiles."""
        return -(-tokens // self.tile) * self.tile

    def rows_of(self, tokens: int) -> int:
        """Returns the rows that so many tokens fill, at least one."""
        return max(1, -(-tokens // self.length))


def geometry_of(sizes: Sequence[Sequence[int]], most_texts: int, *, tile: int, least: int) -> RowGeometry:
    """Returns rows in which any text of a run fits.

    Args:
        sizes: Tokens of every text, by task; at least one.
        most_texts: Of a row that comes packed already.
        tile: Tokens of a tile.
        least: Tokens of a row, at least: short texts leave less of a long row.
    """
    longest = max(max(own) for own in sizes)
    length = -(-max(longest, least) // tile) * tile
    shortest = min(sum(own) / len(own) for own in sizes)
    return RowGeometry(length, tile, max(2, most_texts, round(1.25 * length / shortest)))


Size = tuple[int, int]
"""A row to train on: its tokens, and its texts."""
Place = tuple[int, int]
"""The row in which it lies, and its first token there."""


@dataclass
class RowLayout:
    """Rows as they fill up, owner after owner.

    Attributes:
        geometry: Of the rows.
        most_rows: Rows that may be opened.
        used: Tokens of each row, to the end of its last text.
    """

    geometry: RowGeometry
    most_rows: int
    used: list[int] = field(default_factory=list)
    _texts: list[int] = field(default_factory=list)
    _own: list[int] = field(default_factory=list)

    def next_owner(self) -> None:
        """Begins another owner's tiles: those that are begun are closed."""
        self._own = []

    def place(self, size: Size) -> Place | None:
        """Places a text of the present owner: into its own tiles, else where least is left, else in another row.

        Returns:
            None where there is no room.
        """
        tokens, texts = size
        row = next((row for row in self._own if tokens <= self._room(row, texts)), None)
        if row is None:
            others = ((room, row) for row in range(len(self.used)) if tokens <= (room := self._room(row, texts)))
            row = min(others, default=(0, None))[1]
        if row is None:
            if len(self.used) == self.most_rows:
                return None
            row = len(self.used)
            self.used.append(0)
            self._texts.append(0)
        first = self.geometry.length - self._room(row, texts)
        if row not in self._own:
            self._own.append(row)
        self.used[row] = first + tokens
        self._texts[row] += texts
        return row, first

    def place_all(self, sizes: Sequence[Size]) -> bool:
        """Places texts of the present owner, all of them or none."""
        before = list(self.used), list(self._texts), list(self._own)
        for size in sizes:
            if self.place(size) is None:
                self.used, self._texts, self._own = before
                return False
        return True

    def room(self) -> int:
        """Returns the tokens of the largest text of one that has room."""
        if len(self.used) < self.most_rows:
            return self.geometry.length
        return max((self._room(row, 1) for row in range(len(self.used))), default=0)

    def _room(self, row: int, texts: int) -> int:
        if self._texts[row] + texts > self.geometry.texts:
            return 0
        used = self.used[row] if row in self._own else self.geometry.whole_tiles(self.used[row])
        return self.geometry.length - used


@lru_cache(maxsize=256)
def lay(
    geometry: RowGeometry, sizes: tuple[tuple[Size, ...], ...], group: int = 1
) -> tuple[int, tuple[tuple[Place, ...], ...]]:
    """Lays out a batch, owner after owner, and of each its longest texts first.

    Args:
        geometry: Of the rows.
        sizes: Of the texts of every owner.
        group: Texts that follow one another and stay together.

    Returns:
        The rows that they take, and the place of every text.
    """
    layout = RowLayout(geometry, sum(len(own) for own in sizes))
    places = []
    for own in sizes:
        layout.next_owner()
        found: list[Place] = [(0, 0)] * len(own)
        for _, first in _longest_first(own, group):
            for text in range(first, min(first + group, len(own))):
                place = layout.place(own[text])
                assert place is not None
                found[text] = place
        places.append(tuple(found))
    return len(layout.used), tuple(places)


def cut(
    geometry: RowGeometry, sizes: Mapping[int, Sequence[Size]], most_rows: int, group: int = 1
) -> list[dict[int, list[int]]]:
    """Cuts texts into batches that `lay` lays into at most so many rows, filling one after the other.

    Args:
        geometry: Of the rows.
        sizes: Of the texts of every owner.
        most_rows: Of a batch; a group that takes more is a batch by itself.
        group: Texts that follow one another and stay together.

    Returns:
        Of every batch, the texts of each owner in it, by their numbers.
    """
    left = {owner: _longest_first(own, group) for owner, own in sizes.items()}
    batches = []
    while any(left.values()):
        layout, batch = RowLayout(geometry, most_rows), dict[int, list[int]]()
        for owner, waiting in left.items():
            layout.next_owner()
            at, taken = 0, set[int]()
            while at < len(waiting):
                first = waiting[at][1]
                if layout.place_all(sizes[owner][first : first + group]):
                    taken.add(first)
                    at += 1
                else:
                    at = max(at + 1, bisect_left(waiting, (-layout.room() * group, -1)))
            if taken:
                batch[owner] = [text for first in sorted(taken) for text in range(first, first + group)]
                left[owner] = [one for one in waiting if one[1] not in taken]
        if not batch:
            owner = next(owner for owner, waiting in left.items() if waiting)
            first = left[owner].pop(0)[1]
            batch[owner] = list(range(first, first + group))
        batches.append(batch)
    return batches


def _longest_first(sizes: Sequence[Size], group: int) -> list[tuple[int, int]]:
    """Returns (minus its tokens, its first text) of every group, in order."""
    firsts = range(0, len(sizes), group)
    return sorted((-sum(tokens for tokens, _ in sizes[first : first + group]), first) for first in firsts)
