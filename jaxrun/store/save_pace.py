"""Spaces the checkpoints of a run in time, so that writing them takes no more than a share of it."""

BYTES_PER_S = 500e6
"""Assumed of the first checkpoint of a process: copied to the host, written, hashed. Later ones take what it took."""


class SavePace:
    """The time of the next checkpoint.

    Attributes:
        share: Of the time that checkpoints may take.
        next_s: Seconds of the run before which none is due.
    """

    def __init__(self, share: float, elapsed_s: float = 0.0, size_bytes: int = 0):
        """Predicts the first checkpoint.

        Args:
            share: Of the time that checkpoints may take, above 0 and below 1.
            elapsed_s: Seconds of the run so far.
            size_bytes: Of the first checkpoint; 0 lets it come at once.
        """
        self.share, self.next_s = share, 0.0
        self.saved(elapsed_s, size_bytes / BYTES_PER_S)

    def due(self, elapsed_s: float) -> bool:
        """Whether enough time has passed since the last one."""
        return elapsed_s >= self.next_s

    def saved(self, elapsed_s: float, took_s: float) -> None:
        """Puts the next checkpoint off, after one that ended at `elapsed_s` and took so long."""
        self.next_s = elapsed_s + took_s * (1 / self.share - 1)
