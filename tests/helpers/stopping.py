"""A request to stop that comes after a given number of looks."""


class AskedAfter:
    """Asks a run to stop once it has looked `looks` times whether it should."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0
