"""Orders of rows: one permutation for each (seed, epoch), the same on every machine."""

import numpy as np
from jaxtyping import Int64

CHOICE_SEED = 0x5EED
"""Which rows are chosen or split off never depends on a run's seed, so that all runs share one validation set."""
_WORD = 1 << 64


def order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Returns a permutation of ``range(n)`` that depends on nothing but its arguments.

    Row numbers are sorted by random words of the counter-based generator Philox-4x64, keyed by (seed, epoch). Its words
    are fixed by the algorithm; what NumPy makes of them in ``Generator.permutation`` may change between versions.

    Args:
        n: Rows.
        seed: From 0 to 2⁶⁴ − 1.
        epoch: Which pass over the rows, from 0.

    Raises:
        ValueError: `n`, `seed` or `epoch` is negative, or too large for 64 bits.
    """
    if n < 0 or not 0 <= seed < _WORD or not 0 <= epoch < _WORD:
        raise ValueError(f"given n={n}, seed={seed}, epoch={epoch}, expected none below 0 and 64 bits for each")
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)
