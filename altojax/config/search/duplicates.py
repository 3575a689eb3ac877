"""Duplicate configurations: each is trained once."""

from collections.abc import Callable, Hashable, Iterable, Iterator


def different[T](given: Iterable[T], key: Callable[[T], Hashable], tell: Callable[[str], object]) -> list[T]:
    """Returns the first of all that have a key in common, and tells how many others there are."""
    first: dict[Hashable, tuple[int, T]] = {}
    again = []
    for number, one in enumerate(given, start=1):
        known, _ = first.setdefault(key(one), (number, one))
        if known != number:
            again.append((number, known))
    if again:
        number, known = again[0]
        tell(
            f"search: {len(first)} of {len(first) + len(again)} configurations are different trials (number {number} "
            f"comes to the same as number {known}): each is trained once"
        )
    return [one for _, one in first.values()]


def draw_different[T](drawn: Iterator[T], count: int, key: Callable[[T], Hashable]) -> list[T]:
    """Draws until there are `count` of which no two have a key in common, or until there seem to be no more.

    It gives up after 20 times as many draws in a row as there are different ones, and some: where all are as likely,
    that one more was to be had has then a chance below 1 in 10^8.
    """
    found: dict[Hashable, T] = {}
    missed = 0
    while len(found) < count and missed < 20 * (len(found) + 10):
        one = next(drawn)
        missed = 0 if found.setdefault(key(one), one) is one else missed + 1
    return list(found.values())
