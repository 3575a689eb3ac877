"""The command line: ``altojax VERB ...``."""

from collections.abc import Sequence

from jaxrun.config.cli import main as run_program
from jaxrun.config.settings import RunSettings, take_settings
from jaxrun.config.verbs import Args, Positional, Verb, later
from jaxrun.process.environment import set_environment

ABOUT = "Tunes many LoRA configurations at once over one frozen base and hands back the best adapters."


def tune(args: Args) -> int:
    """Runs ``altojax tune CONFIG key=value ...``."""
    from altojax import run_tune

    settings, overrides = take_settings(RunSettings, args.overrides)
    return run_tune(args["config"], overrides, overwrite=settings.overwrite)[0]


def _verbs() -> dict[str, Verb]:
    from altojax import doctor
    from altojax.cluster.service.verbs import client_verbs, queue_table, serve, submit
    from altojax.cluster.simulation import simulate
    from altojax.inference import evaluate, export, generate, show_rows
    from altojax.report import status, write_report
    from altojax.report.replay import REPLAY

    verbs = [
        Verb(
            name="tune",
            help="Train the configurations of all tasks, hand back the best adapter of each; resumes where it stopped.",
            run=tune,
            positionals=(Positional("config", "a YAML file such as configs/quickstart.yaml"),),
            config=later("altojax.config.tune_config:TuneConfig"),
            settings=RunSettings,
            examples=(
                "altojax tune configs/quickstart.yaml",
                "altojax tune configs/quickstart.yaml output_dir=runs/second search.lora_rank=[8,16] overwrite=true",
            ),
        ),
        *(module.VERB for module in (status, write_report, export, evaluate, generate)),
        REPLAY,
        doctor.VERB,
        show_rows.VERB,
        submit.VERB,
        serve.VERB,
        queue_table.VERB,
        *client_verbs.VERBS,
        simulate.VERB,
    ]
    return {verb.name: verb for verb in verbs}


def _explain(error: Exception) -> str | None:
    from jaxlm.devices.machine import explain

    return explain(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    set_environment("altojax")
    return run_program("altojax", _verbs(), argv, about=ABOUT, explain=_explain)
