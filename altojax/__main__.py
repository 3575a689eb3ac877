"""The program: ``altojax VERB ...``, also as ``python -m altojax``."""

import sys

from harness.starting import start


def main() -> int:
    """Runs one verb; returns the exit code."""
    return start("altojax", "altojax.cli")


if __name__ == "__main__":
    sys.exit(main())
