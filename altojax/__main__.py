"""The program: ``altojax VERB ...``, also as ``python -m altojax``."""

import sys

from jaxrun.process.startup import start


def main() -> int:
    """Runs one verb; returns the exit code."""
    code = start("altojax", "altojax.cli")
    from jaxrun.process.background import leave  # imports more than may come before `start`

    return leave(code)


if __name__ == "__main__":
    sys.exit(main())
