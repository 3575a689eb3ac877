"""Trains a model whose parts are good models: `twistjax train`, for those who run a script with flags.

    python scripts/twist.py --config configs/twistjax/quickstart.yaml --output-dir runs/mine --seed 1

Keys, hardware, time and what to expect are those of `twistjax train`; `--help` lists the keys.
"""

from jaxrun.process.script import run_script

import sys


def main() -> int:
    """Runs the verb with what follows the script's name."""
    from twistjax.__main__ import main as run

    sys.argv[1:1] = ["train"]
    return run()


if __name__ == "__main__":
    sys.exit(run_script(main))
