"""The program: ``twistjax VERB ...``, also as ``python -m twistjax``."""

import sys

from jaxrun.process.startup import start


def main() -> int:
    """Runs one verb; returns the exit code."""
    return start("twistjax", "twistjax.cli")


if __name__ == "__main__":
    sys.exit(main())
