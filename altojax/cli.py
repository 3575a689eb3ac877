"""The command line: ``altojax VERB ...``."""

from collections.abc import Sequence

from jaxrun.config.cli import main as run_program
from jaxrun.config.settings import RunSettings, take_settings
from jaxrun.config.verbs import Args, LazyVerbs, Positional, Verb, later
from jaxrun.process.environment import set_environment

ABOUT = "Tunes many LoRA configurations at once over one frozen base and hands back the best adapters."


def tune(args: Args) -> int:
    """Runs ``altojax tune CONFIG key=value ...``."""
    from altojax import run_tune

    settings, overrides = take_settings(RunSettings, args.overrides)
    return run_tune(args["config"], overrides, overwrite=settings.overwrite)[0]


TUNE = Verb(
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
)
VERBS = LazyVerbs(
    {
        "tune": "altojax.cli:TUNE",
        "status": "altojax.report.status:VERB",
        "report": "altojax.report.write_report:VERB",
        "export": "altojax.inference.export:VERB",
        "evaluate": "altojax.inference.evaluate:VERB",
        "generate": "altojax.inference.generate:VERB",
        "replay": "altojax.report.replay:REPLAY",
        "doctor": "altojax.doctor:VERB",
        "show": "altojax.inference.show_rows:VERB",
        "submit": "altojax.cluster.service.verbs.submit:VERB",
        "serve": "altojax.cluster.service.verbs.serve:VERB",
        "queue": "altojax.cluster.service.verbs.queue_table:VERB",
        "cancel": "altojax.cluster.service.verbs.client_verbs:CANCEL",
        "pause": "altojax.cluster.service.verbs.client_verbs:PAUSE",
        "resume": "altojax.cluster.service.verbs.client_verbs:RESUME",
        "simulate": "altojax.cluster.simulation.simulate:VERB",
    }
)


def _explain(error: Exception) -> str | None:
    from jaxlm.devices.machine import explain

    return explain(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    set_environment("altojax")
    return run_program("altojax", VERBS, argv, about=ABOUT, explain=_explain)
