"""Every mistake on the command line is exactly one line on stderr, and the exit codes mean what they say."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest

from jaxrun.config.cli import main
from jaxrun.config.config import StrictModel
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[3]


class Search(StrictModel):
    """What to try.

    Attributes:
        learning_rate: Its peak.
        rank: Columns.
        alpha: Scale.
        dropout: Share that is dropped.
    """

    learning_rate: float | list[float] = 1e-4
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0

    foreign_names: ClassVar[dict[str, str]] = {"lr": "learning_rate"}


class Config(StrictModel):
    """A run.

    Attributes:
        seed: Of all draws.
        search: What to try.
        shares: Of people.
        mode: Of the run.
    """

    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    search: Search = Search()
    shares: dict[str, Search] | None = None
    mode: bool | Literal["auto"] | None = None


class Own(StrictModel):
    """What the verb takes.

    Attributes:
        overwrite: Start anew.
        port: Where to listen.
        as_json: Print JSON.
        fill: Or by what.
    """

    overwrite: bool = False
    port: int = 8000
    as_json: bool = pydantic.Field(False, alias="json")
    fill: bool | str = False


RUN, OUT = Positional("run", "a folder"), Positional("out", "a file", required=False)
UNKNOWN, SEE = "tune: unknown flag", "see altojax tune --help"


@pytest.fixture
def program(capsys):
    seen: list[Args] = []

    def tune(args: Args) -> int:
        seen.append(args)
        match dict(word.split("=", 1) for word in args.overrides).get("do"):
            case "wrong":
                raise UserError("run.yaml: seed: given x,\nexpected a whole number")
            case "crash":
                raise ValueError("first\nsecond")
            case "interrupt":
                raise KeyboardInterrupt
        return 0

    verbs = {
        "tune": Verb(
            "tune",
            "Tune many adapters over one base.",
            tune,
            [Positional("config", "a YAML file")],
            config=lambda: Config,
            settings=Own,
            examples=["altojax tune configs/quickstart.yaml search.rank=[8,16]"],
        ),
        "report": Verb("report", "Write the report.", tune, [RUN, OUT]),
    }

    def run(*argv: str) -> tuple[int, str, str]:
        code = main("altojax", verbs, argv, about="Tunes adapters.")
        out, err = capsys.readouterr()
        return code, out, err

    run.seen = seen
    return run


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "no verb given, expected one of tune, report; see altojax --help"),
        (["tun"], 2, "unknown verb 'tun', expected one of tune, report (did you mean 'tune'?)"),
        (["--fast"], 2, "unknown flag '--fast', expected a verb: tune, report"),
        (["tune"], 2, "tune: no config given, expected a YAML file; see altojax tune --help"),
        (["tune", "seed=1"], 2, "tune: no config given, expected a YAML file; see altojax tune --help"),
        (["tune", "a", "b"], 2, "tune: unexpected argument 'b', expected key=value; see altojax tune --help"),
        (["report"], 2, "report: no run given, expected a folder; see altojax report --help"),
        (["report", *"abc"], 2, "report: unexpected argument 'c', expected nothing more; see altojax report --help"),
        (["tune", "a", "--overwrit"], 2, f"{UNKNOWN} '--overwrit' (did you mean 'overwrite'?); {SEE}"),
        (["tune", "a", "--debu"], 2, f"{UNKNOWN} '--debu' (did you mean '--debug'?); {SEE}"),
        (["tune", "--confg", "a"], 2, f"{UNKNOWN} '--confg' (did you mean '--config'?); {SEE}"),
        (["tune", "a", "--rank=3"], 2, f"{UNKNOWN} '--rank' (did you mean 'search.rank'?); {SEE}"),
        (["tune", "a", "--lr", "3"], 2, f"{UNKNOWN} '--lr' (did you mean 'search.learning_rate'?); {SEE}"),
        (["tune", "a", "--search.lr=3"], 2, f"{UNKNOWN} '--search.lr' (did you mean 'search.learning_rate'?); {SEE}"),
        (["tune", "a", "--bf16"], 2, f"{UNKNOWN} '--bf16'; {SEE}"),
        (["tune", "a", "-seed", "3"], 2, f"{UNKNOWN} '-seed' (did you mean 'seed'?); {SEE}"),
        (["tune", "a", "--no-port"], 2, f"{UNKNOWN} '--no-port'; {SEE}"),
        (["tune", "--no-overwrite=1"], 2, f"tune: given '--no-overwrite=1', expected --no-overwrite alone; {SEE}"),
        (["tune", "a", "--port"], 2, f"tune: --port: no value given, expected --port=VALUE; {SEE}"),
        (["tune", "--port", "--overwrite"], 2, f"tune: --port: no value given, expected --port=VALUE; {SEE}"),
        (["tune", "a", "--fill"], 2, f"tune: --fill: no value given, expected --fill=VALUE; {SEE}"),
        (["tune", "--", "-a", "--seed"], 2, f"tune: unexpected argument '--seed', expected key=value; {SEE}"),
        (["report", "a", "--seed"], 2, "report: unknown flag '--seed'; see altojax report --help"),
        (["tune", "a", "do=wrong"], 2, "run.yaml: seed: given x, expected a whole number"),
        (["tune", "a", "do=crash"], 1, "ValueError: first second (run again with --debug for the traceback)"),
    ],
)
def test_mistakes_are_one_line_on_stderr(program, argv, code, said):
    assert program(*argv) == (code, "", f"altojax: error: {said}\n")


def test_an_interrupt_exits_130(program):
    assert program("tune", "a", "do=interrupt") == (130, "", "altojax: interrupted\n")


def test_debug_shows_the_traceback(program):
    code, out, err = program("tune", "a", "do=crash", "--debug")
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("altojax: error: ValueError: first second\n")


def test_arguments_reach_the_verb(program):
    code, out, err = program("tune", "--port", "9", "runs/lr=1/a.yaml", "search.rank=[8, 16]", "--overwrite", "x=a=b")
    assert (code, out, err) == (0, "", "")
    (args,) = program.seen
    assert args.values == {"config": "runs/lr=1/a.yaml"}
    assert args.overrides == ("port=9", "search.rank=[8, 16]", "overwrite=true", "x=a=b")
    program("report", "a", "b=c")
    assert program.seen[1].values == {"run": "a", "out": "b=c"}


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--search.learning-rate", "-1"], ["search.learning_rate=-1"]),
        (["--search.learning_rate=-1"], ["search.learning_rate=-1"]),
        (["search.learning-rate=-1"], ["search.learning_rate=-1"]),
        (["--shares.my-name.learning-rate", "1"], ["shares.my-name.learning_rate=1"]),
        (["--overwrite", "--no_overwrite"], ["overwrite=true", "overwrite=false"]),
        (["--overwrite", "false", "--no-mode"], ["overwrite=false", "mode=false"]),
        (["--mode", "--mode", "auto", "--mode", "null"], ["mode=true", "mode=auto", "mode=null"]),
        (["--json", "--fill", "true", "--fill", "- x"], ["json=true", "fill=true", "fill=- x"]),
        (["--search", "{rank: 4}", "--seed", ""], ["search={rank: 4}", "seed="]),
        (["--search.learning-rate", "1,2", "--fill=1,2"], ["search.learning_rate=1,2", "fill=1,2"]),
    ],
)
@pytest.mark.parametrize("place", ["before", "after", "named", "after --"])
def test_a_flag_means_its_key_and_swallows_no_argument(program, words, overrides, place):
    named = {"before": ["a.yaml", *words], "after": [*words, "a.yaml"], "named": [*words, "--config", "a.yaml"]}
    assert program("tune", *named.get(place, [*words, "--", "a.yaml"])) == (0, "", "")
    assert program.seen[0].values == {"config": "a.yaml"}
    assert list(program.seen[0].overrides) == overrides


def test_after_two_dashes_no_word_is_a_flag(program):
    assert program("tune", "--", "-a.yaml", "seed=1") == (0, "", "")
    assert (program.seen[0]["config"], program.seen[0].overrides) == ("-a.yaml", ("seed=1",))
    assert program("tune", "--", "--help")[0] == 0
    assert program.seen[1]["config"] == "--help"


def test_help_tells_verbs_arguments_and_examples(program):
    code, out, err = program("--help")
    assert (code, err) == (0, "")
    assert "Tunes adapters." in out and "report  Write the report." in out and "configs/quickstart.yaml" in out
    code, out, err = program("tune", "--help")
    assert (code, err) == (0, "")
    for words in (
        "usage: altojax tune config [key=value ...]",
        "seed       Of all draws. [whole number ≥ 0; default 0]",
        "search     What to try. [section: altojax tune --help search]",
        "overwrite  Start anew. [true or false; default false]",
        "json       Print JSON.",
        "a YAML file",
        "--debug",
        "search.rank=",
    ):
        assert words in out
    assert program("tune", "-h") == program("--help", "tune") == program("help", "tune") == (0, out, "")
    code, out, err = program("--version")
    assert (code, err) == (0, "") and out.startswith("altojax ")
    assert program("-V") == (0, out, "")


def test_a_closed_pipe_is_silent():
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from jaxrun.config.cli import main\n"
        "from jaxrun.config.verbs import Verb\n"
        "verb = Verb('talk', 'Talk.', lambda args: [print(n) for n in range(100_000)] and 0)\n"
        "sys.exit(main('altojax', {'talk': verb}, ['talk']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141
