"""Tunes adapters: `altojax tune`, for those who run a script with flags.

    python scripts/tune.py --config configs/quickstart.yaml --output-dir runs/mine --search.lora-rank 8,16

Keys, hardware, time and what to expect are those of `altojax tune`; `--help` lists the keys.
"""

from jaxrun.process.script import run_script

import sys


def main() -> int:
    """Runs the verb with what follows the script's name."""
    from altojax.__main__ import main as run

    sys.argv[1:1] = ["tune"]
    return run()


if __name__ == "__main__":
    sys.exit(run_script(main))
