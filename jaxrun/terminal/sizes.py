"""Numbers of bytes and of things as a person reads them."""


def size_text(count: float) -> str:
    """Returns a number of bytes as a person reads it: ``1.50 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def counted(count: int, noun: str) -> str:
    """Returns a number of things as a person reads it: ``1 row``, ``1,204 rows``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
