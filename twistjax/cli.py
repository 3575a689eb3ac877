"""The command line: ``twistjax VERB ...``."""

import sys
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import pydantic

from jaxrun.config.cli import main as run_program
from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.settings import RunSettings, ShowSettings, read_settings, take_settings
from jaxrun.config.verbs import Args, Positional, Verb, later
from jaxrun.process.environment import set_environment
from jaxrun.terminal.tables import print_table
from twistjax.doctor import run as doctor
from twistjax.report.status import run as status
from twistjax.show_rows import run as show
from twistjax.tickets.settings import TicketExportSettings, TicketSettings

ABOUT = "Trains a language model so that random parts of it are good, smaller models as they are."
Positive = Annotated[int, pydantic.Field(ge=1)]


class MeasureSettings(StrictModel):
    """Settings of ``twistjax measure MODEL``.

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
    from twistjax import run_train

    settings, overrides = take_settings(RunSettings, args.overrides)
    return run_train(args["config"], overrides, overwrite=settings.overwrite)[0]


def tickets(args: Args) -> int:
    """Runs ``twistjax tickets RUN key=value ...``."""
    from jaxlm.models.perplexity import perplexity, shown
    from twistjax.report.write_report import write_report
    from twistjax.tickets.run_results import draw

    settings = read_settings(TicketSettings, args.overrides)
    found = draw(args["run"], settings)
    columns = ["kappa", "heads", "neurons", "mean ppl", "sd", "best", "which", "mix", "repaired"]
    rows = []
    for one in found.rows():
        mixed, repaired = (
            "-" if one[name] is None else shown(one[name]) for name in ("mix_perplexity", "repaired_perplexity")
        )
        numbers = (shown(one[name]) for name in ("mean_perplexity", "sd", "best_perplexity"))
        rows.append(
            [f"{one['kappa']:g}", str(one["heads"]), str(one["neurons"]), *numbers, str(one["best"]), mixed, repaired]
        )
    told = shown(perplexity(found.full_loss))
    print(f"full model: perplexity {told} after round {found.run.round}; tickets over the same validation rows:")
    print_table(columns, rows, right=range(9))
    if not found.draws and (unused := sorted(settings.model_fields_set & {"draws", "mix"})):
        print(f"by importance there is one ticket of a kappa: {', '.join(unused)} not used")
    for line in found.warnings():
        warn(line)
    for path in write_report(found.run.run_dir):
        print(f"wrote {path}")
    return 0


def export(args: Args) -> int:
    """Runs ``twistjax export RUN kappa=K out=DIR ...``."""
    from jaxlm.models.perplexity import perplexity, shown
    from twistjax.tickets.run_results import export as write

    settings = read_settings(TicketExportSettings, args.overrides)
    made = write(args["run"], settings)
    size = sum(path.stat().st_size for kind in ("safetensors", "gguf") for path in made.folder.glob(f"*.{kind}"))
    loss = f"validation perplexity {shown(perplexity(made.loss))}, full model {shown(perplexity(made.full_loss))}"
    print(f"wrote {made.folder}: {made.parameters:,} parameters, {size / 1e6:.1f} MB, {loss}")
    warn(made.warning(settings.kappa))
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


_TWIST_CONFIG = later("twistjax.config:TwistConfig")
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
            config=_TWIST_CONFIG,
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
            settings=TicketSettings,
            examples=("twistjax tickets runs/twist kappa=0.5,0.75 draws=8", "twistjax tickets runs/twist mix=4"),
        ),
        Verb(
            name="export",
            help="Write a ticket as a Hugging Face model, or as a GGUF file.",
            run=export,
            positionals=(_RUN,),
            settings=TicketExportSettings,
            examples=(
                "twistjax export runs/twist kappa=0.5 out=models/half",
                "twistjax export runs/twist kappa=0.5 ticket=0 dtype=bfloat16 out=models/half",
                "twistjax export runs/twist kappa=0.5 format=gguf dtype=float16 out=models/half-gguf",
            ),
        ),
        Verb(
            name="measure",
            help="Perplexity, size and speed of a model folder on this machine.",
            run=measure,
            positionals=(Positional("model", "a Hugging Face folder, a .gguf file or a hub id"),),
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
            config=_TWIST_CONFIG,
            settings=RunSettings,
            examples=("twistjax doctor", "twistjax doctor configs/twistjax/quickstart.yaml"),
        ),
        Verb(
            name="baselines",
            help="Fine-tune and prune the same model in other ways, on the same text and tokens, and compare.",
            run=baselines,
            positionals=(_CONFIG,),
            config=_TWIST_CONFIG,
            examples=("twistjax baselines configs/twistjax/quickstart.yaml",),
        ),
        Verb(
            name="show",
            help="Show texts as tokens, with what of them is learnt, what is skipped and what is not used.",
            run=show,
            positionals=(_CONFIG,),
            config=_TWIST_CONFIG,
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
