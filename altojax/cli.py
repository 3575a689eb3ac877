"""The command line: ``altojax VERB ...``."""

from collections.abc import Sequence

from harness.cli import Args, Positional, Verb
from harness.cli import main as run_program
from harness.config import StrictModel, load_config
from harness.environment import set_environment
from harness.settings import RunSettings, take_settings

ABOUT = "Tunes many LoRA configurations at once over one frozen base and hands back the best adapters."


def tune(args: Args) -> int:
    """Runs ``altojax tune CONFIG key=value ...``."""
    from altojax.loading import told_what_would_fit
    from altojax.search import TuneConfig
    from altojax.tuner import Tuner
    from backbone.hosts import join

    settings, overrides = take_settings(RunSettings, args.overrides)
    with join("altojax") as hosts:
        with hosts.together():
            config = load_config(TuneConfig, args["config"], overrides)
        tuner = Tuner(config, overwrite=settings.overwrite, hosts=hosts)
        with told_what_would_fit(config, tuner.prepared.bases):
            return tuner.run()


def _config() -> type[StrictModel]:
    from altojax.search import TuneConfig

    return TuneConfig


def _verbs() -> dict[str, Verb]:
    from altojax import doctor, evaluate, export, generate, report, show, status
    from altojax.replay import REPLAY
    from altojax.service import client_verbs, queue_table, serve, submit
    from altojax.simulation import simulate

    verbs = [
        Verb(
            name="tune",
            help="Train the configurations of all tasks, hand back the best adapter of each; goes on where it stopped.",
            run=tune,
            positionals=(Positional("config", "a YAML file such as configs/quickstart.yaml"),),
            overrides=True,
            config=_config,
            settings=RunSettings,
            examples=(
                "altojax tune configs/quickstart.yaml",
                "altojax tune configs/quickstart.yaml output_dir=runs/second search.lora_rank=[8,16] overwrite=true",
            ),
        ),
        *(module.VERB for module in (status, report, export, evaluate, generate)),
        REPLAY,
        doctor.VERB,
        show.VERB,
        submit.VERB,
        serve.VERB,
        queue_table.VERB,
        *client_verbs.VERBS,
        simulate.VERB,
    ]
    return {verb.name: verb for verb in verbs}


def _explain(error: Exception) -> str | None:
    from backbone.machine import explain

    return explain(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    set_environment("altojax")
    return run_program("altojax", _verbs(), argv, about=ABOUT, explain=_explain)
