"""The program: ``altojax VERB ...``, also as ``python -m altojax``."""

import sys

from harness.starting import start


def main() -> int:
    """Runs one verb; returns the exit code."""
    code = start("altojax", "altojax.cli")
    from harness.background import leave  # imports more than may come before `start`

    return leave(code)


if __name__ == "__main__":
    sys.exit(main())
