"""The command line: ``twistjax VERB ...``."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from jaxrun.config.cli import Args, Option, Positional, Verb
from jaxrun.config.cli import main as run_program
from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.settings import RunSettings, ShowSettings, read_settings, take_settings
from jaxrun.files.exports import make_way
from jaxrun.files.home import from_home
from jaxrun.process.environment import set_environment
from jaxrun.terminal.tables import print_table
from twistjax.doctor import run as doctor
from twistjax.report.status import run as status
from twistjax.show_rows import run as show

ABOUT = "Trains a language model so that random parts of it are good, smaller models as they are."
Kappa = Annotated[float, pydantic.Field(gt=0, le=1)]
Positive = Annotated[int, pydantic.Field(ge=1)]


class TicketSettings(StrictModel):
    """What ``twistjax tickets RUN`` takes.

    Attributes:
        kappa: Shares to keep, a list or with commas between them; null is those that were trained.
        draws: Random tickets of each.
        mix: Also mix the layers of this many best tickets, which takes layers × (mix − 1) evaluations; 0 does not.
    """

    kappa: Kappa | Annotated[list[Kappa], pydantic.Field(min_length=1)] | None = None
    draws: Annotated[int, pydantic.Field(ge=1, le=100_000)] = 32
    mix: Annotated[int, pydantic.Field(ge=0)] = 0

    foreign_names: ClassVar[dict[str, str]] = {"n": "draws", "tickets": "draws", "keep": "kappa"}

    @pydantic.field_validator("kappa", mode="before")
    @classmethod
    def _with_commas(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return [float(part) for part in given.split(",")]
        except ValueError:
            return given


class TicketExportSettings(StrictModel):
    """What ``twistjax export RUN`` takes.

    Attributes:
        kappa: The share to keep; 1 is the full model.
        out: Where to.
        ticket: ``best``, ``mix`` or the number of a random ticket.
        dtype: To write in.
        overwrite: Replace an earlier export that is there, if it holds nothing else.
    """

    kappa: Kappa
    out: Annotated[str, pydantic.Field(min_length=1)]
    ticket: str | int = "best"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    overwrite: bool = False

    foreign_names: ClassVar[dict[str, str]] = {"output_dir": "out", "keep": "kappa", "torch_dtype": "dtype"}


class MeasureSettings(StrictModel):
    """What ``twistjax measure MODEL`` takes.

    Attributes:
        data: File, folder or hub id of text; null measures size and speed alone.
        max_length: Tokens of a row.
        max_samples: Use at most this many rows, a fixed random choice.
        batch_size: Rows at once.
        new_tokens: Tokens to write, for the speed of writing; 0 measures no speed.
        dtype: Of weights and computation.
        out: Write the results here as JSON.
    """

    data: str | None = None
    max_length: Annotated[int, pydantic.Field(ge=2)] = 512
    max_samples: Positive | None = None
    batch_size: Positive = 8
    new_tokens: Annotated[int, pydantic.Field(ge=0)] = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: str | None = None

    foreign_names: ClassVar[dict[str, str]] = {"length": "max_length", "torch_dtype": "dtype", "dataset": "data"}


def train(args: Args) -> int:
    """Runs ``twistjax train CONFIG key=value ...``."""
    from jaxlm.devices.hosts import join
    from twistjax.config import TwistConfig
    from twistjax.training.trainer import Trainer

    settings, overrides = take_settings(RunSettings, args.overrides)
    with join("twistjax") as hosts:
        with hosts.together():
            config = load_config(TwistConfig, args["config"], overrides)
        return Trainer(config, overwrite=settings.overwrite, hosts=hosts).run()


def tickets(args: Args) -> int:
    """Runs ``twistjax tickets RUN key=value ...``."""
    from jaxlm.models.perplexity import perplexity, shown
    from twistjax.report.loss_gap import warning
    from twistjax.report.write_report import write_report
    from twistjax.tickets.sampling import draw_tickets, write_tickets
    from twistjax.training.central_model import open_trained
    from twistjax.training.prepare import scorer_of

    settings = read_settings(TicketSettings, args.overrides)
    run = open_trained(args["run"])
    given = settings.kappa
    kappas = run.config.subnetworks.ladder if given is None else given if isinstance(given, list) else [given]
    scorer, units = scorer_of(run.config, run.prepared), run.prepared.units
    full = scorer.full(run.weights, run.config.subnetworks.ladder[0])
    drawn, rows = [], []
    for kappa in sorted(set(kappas)):
        one = draw_tickets(
            run.weights, units, scorer, kappa, seed=run.config.seed, draws=settings.draws, mix=settings.mix
        )
        drawn.append(one)
        facts = {"round": run.round, "seed": run.config.seed, "full_perplexity": perplexity(full)}
        write_tickets(run.run_dir, drawn, facts)
        small = units.subnetwork(kappa)
        mean, deviation, best = one.perplexity
        mixed = "-" if one.mixed is None else shown(perplexity(one.mixed[0]))
        cells = [f"{kappa:g}", str(small.num_heads), str(small.intermediate_size)]
        rows.append([*cells, shown(mean), shown(deviation), shown(best), str(one.best), mixed])
    columns = ["kappa", "heads", "neurons", "mean ppl", "sd", "best", "which", "mix"]
    told = shown(perplexity(full))
    print(f"full model: perplexity {told} after round {run.round}; tickets over the same validation rows:")
    print_table(columns, rows, right=range(8))
    for one in drawn:
        warn(warning(f"the best ticket of kappa {one.kappa:g}", min(one.losses), full))
    for path in write_report(run.run_dir):
        print(f"wrote {path}")
    return 0


def export(args: Args) -> int:
    """Runs ``twistjax export RUN kappa=K out=DIR ...``."""
    from jaxlm.models.perplexity import perplexity, shown
    from twistjax.report.loss_gap import warning
    from twistjax.tickets.export import export as write
    from twistjax.training.central_model import open_trained

    settings = read_settings(TicketExportSettings, args.overrides)
    out = from_home(settings.out)
    make_way(out, overwrite=settings.overwrite)
    run = open_trained(args["run"])
    made = write(run, out, settings.kappa, str(settings.ticket), dtype=settings.dtype)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    loss = f"validation perplexity {shown(perplexity(made.loss))}, full model {shown(perplexity(made.full_loss))}"
    print(f"wrote {out}: {made.parameters:,} parameters, {size / 1e6:.1f} MB, {loss}")
    warn(warning(f"this ticket of kappa {settings.kappa:g}", made.loss, made.full_loss))
    if not made.plain:
        print("it brings a modelling file: transformers loads it with trust_remote_code=True")
    return 0


def measure(args: Args) -> int:
    """Runs ``twistjax measure MODEL key=value ...``."""
    from jaxlm.models.perplexity import shown
    from twistjax.comparison.measure import measure_model

    settings = read_settings(MeasureSettings, args.overrides)
    results = measure_model(
        args["model"],
        data=settings.data,
        max_length=settings.max_length,
        max_samples=settings.max_samples,
        batch_size=settings.batch_size,
        new_tokens=settings.new_tokens,
        dtype=settings.dtype,
        out=settings.out,
    )
    cells = [[name, shown(value) if name == "perplexity" else _counted(value)] for name, value in results.items()]
    print_table(["what", "value"], cells, right=[1])
    if results.get("perplexity", 0.0) > results["vocabulary"]:
        warn("warning: perplexity is above the size of the vocabulary: any token is as good a guess as this model's")
    return 0


def _counted(value: float) -> str:
    return f"{value:,.{0 if value.is_integer() else 2}f}"


def warn(line: str | None) -> None:
    """Prints a warning, if there is one, to standard error."""
    if line is not None:
        print(line, file=sys.stderr)


def baselines(args: Args) -> int:
    """Runs ``twistjax baselines CONFIG key=value ...``."""
    from rich.console import Console

    from jaxlm.models.perplexity import shown
    from twistjax.comparison.baselines import Bench
    from twistjax.config import TwistConfig

    results = Bench(load_config(TwistConfig, args["config"], args.overrides), Console()).run()
    rows = []
    for one in sorted(results, key=lambda one: (-one.kappa, one.perplexity)):
        mean, deviation = one.perplexity
        rows.append([one.arm, f"{one.kappa:g}", shown(mean), shown(deviation), f"{one.parameters:,}"])
    print_table(["what", "kappa", "ppl", "sd", "parameters"], rows, right=range(1, 5))
    return 0


def report(args: Args) -> int:
    """Runs ``twistjax report RUN``."""
    from twistjax.report.write_report import write_report

    for path in write_report(args["run"]):
        print(path)
    return 0


def _config() -> type[StrictModel]:
    from twistjax.config import TwistConfig

    return TwistConfig


_RUN = Positional("run", "the output_dir of a run")
_CONFIG = Positional("config", "a YAML file such as configs/twistjax/quickstart.yaml")
VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="train",
            help="Train subnetworks of a model in parallel, average them and draw new ones; resumes where it stopped.",
            run=train,
            positionals=(_CONFIG,),
            overrides=True,
            config=_config,
            settings=RunSettings,
            examples=(
                "twistjax train configs/twistjax/quickstart.yaml",
                "twistjax train configs/twistjax/quickstart.yaml output_dir=runs/second subnetworks.kappa=[0.5,0.75]",
            ),
        ),
        Verb(
            name="tickets",
            help="Draw random subnetworks of a trained model and score them; remembers the best.",
            run=tickets,
            positionals=(_RUN,),
            overrides=True,
            settings=TicketSettings,
            examples=("twistjax tickets runs/twist kappa=0.5,0.75 draws=8", "twistjax tickets runs/twist mix=4"),
        ),
        Verb(
            name="export",
            help="Write a ticket as a Hugging Face model.",
            run=export,
            positionals=(_RUN,),
            overrides=True,
            settings=TicketExportSettings,
            examples=(
                "twistjax export runs/twist kappa=0.5 out=models/half",
                "twistjax export runs/twist kappa=0.5 ticket=0 dtype=bfloat16 out=models/half",
            ),
        ),
        Verb(
            name="measure",
            help="Perplexity, size and speed of a model folder on this machine.",
            run=measure,
            positionals=(Positional("model", "a Hugging Face folder, a .gguf file or a hub id"),),
            overrides=True,
            settings=MeasureSettings,
            examples=("twistjax measure models/half data=text.txt max_length=512",),
        ),
        Verb(
            name="status",
            help="Show where a run stands, also while it is live.",
            run=status,
            positionals=(_RUN,),
            examples=("twistjax status runs/twist",),
        ),
        Verb(
            name="doctor",
            help="Show what this machine has, and whether a config would run on it.",
            run=doctor,
            positionals=(Positional("config", "a YAML file as for train", required=False),),
            overrides=True,
            config=_config,
            settings=RunSettings,
            examples=("twistjax doctor", "twistjax doctor configs/twistjax/quickstart.yaml"),
        ),
        Verb(
            name="baselines",
            help="Fine-tune and prune the same model in other ways, on the same text and tokens, and compare.",
            run=baselines,
            positionals=(_CONFIG,),
            overrides=True,
            config=_config,
            examples=("twistjax baselines configs/twistjax/quickstart.yaml",),
        ),
        Verb(
            name="show",
            help="Show texts as tokens, with what of them is learnt, what is skipped and what is not used.",
            run=show,
            positionals=(_CONFIG,),
            options=(Option("json", "print JSON"),),
            overrides=True,
            config=_config,
            settings=ShowSettings,
            examples=("twistjax show configs/twistjax/quickstart.yaml rows=1",),
        ),
        Verb(
            name="report",
            help="Write a run's plots/*.png and report.html again, also while it is live.",
            run=report,
            positionals=(_RUN,),
            examples=("twistjax report runs/twist",),
        ),
    )
}


def _explain(error: Exception) -> str | None:
    from jaxlm.devices.machine import explain

    return explain(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    set_environment("twistjax")
    return run_program("twistjax", VERBS, argv, about=ABOUT, explain=_explain)
