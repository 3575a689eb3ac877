"""Row lengths come in a few sizes, so that the compiled step exists in a few shapes."""

import bisect
from collections.abc import Sequence

_SMALLEST = 32


def default_buckets(max_length: int) -> tuple[int, ...]:
    """Returns the ladder 32, 48, 64, 96, 128, 192, ... up to and including `max_length`: at most a third is padding.

    Args:
        max_length: Longest row in tokens, at least 1.

    Raises:
        ValueError: `max_length` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"given max_length={max_length}, expected at least 1")
    ladder = []
    length = _SMALLEST
    while length < max_length:
        ladder.append(length)
        length += length // 2 if length & (length - 1) == 0 else length // 3
    return (*ladder, max_length)


def bucket_length(n: int, buckets: Sequence[int]) -> int:
    """Returns the shortest bucket that holds a row of `n` tokens.

    Args:
        n: Tokens in the row.
        buckets: Lengths, ascending.

    Raises:
        ValueError: No bucket is long enough.
    """
    index = bisect.bisect_left(buckets, n)
    if index == len(buckets):
        raise ValueError(f"given a row of {n} tokens, expected at most {buckets[-1] if buckets else 0}")
    return buckets[index]
