"""The command line: ``altojax VERB ...``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli import Args, Positional, Verb
from harness.cli import main as run_program
from harness.config import load_config
from harness.errors import UserError

ABOUT = "Tunes many LoRA configurations at once over one frozen base and hands back the best adapters."


def tune(args: Args) -> int:
    """Runs ``altojax tune CONFIG key=value ...``."""
    from altojax.search import TuneConfig
    from altojax.tuner import Tuner

    overrides = [one for one in args.overrides if one.partition("=")[0] != "overwrite"]
    overwrite = [one.partition("=")[2].lower() for one in args.overrides if one.partition("=")[0] == "overwrite"]
    if overwrite and overwrite[-1] not in ("true", "false"):
        raise UserError(f"overwrite: given '{overwrite[-1]}', expected true or false")
    config = load_config(TuneConfig, args["config"], overrides)
    return Tuner(config, overwrite=overwrite[-1:] == ["true"]).run()


def _verbs() -> dict[str, Verb]:
    from altojax import doctor, evaluate, export, generate, report, status
    from altojax.replay import REPLAY

    verbs = [
        Verb(
            name="tune",
            help="Train the configurations of all tasks, hand back the best adapter of each; goes on where it stopped.",
            run=tune,
            positionals=(Positional("config", "a YAML file such as configs/quickstart.yaml"),),
            overrides=True,
            examples=(
                "altojax tune configs/quickstart.yaml",
                "altojax tune configs/quickstart.yaml output_dir=runs/second search.lora_rank=[8,16] overwrite=true",
            ),
        ),
        *(module.VERB for module in (status, report, export, evaluate, generate)),
        REPLAY,
        doctor.VERB,
    ]
    return {verb.name: verb for verb in verbs}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_folder()))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return run_program("altojax", _verbs(), argv, about=ABOUT)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "altojax" / "xla"


if __name__ == "__main__":
    sys.exit(main())
