"""Every mistake on the command line is exactly one line on stderr, and the exit codes mean what they say."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import pydantic
import pytest

from jaxrun.config.cli import Args, Option, Positional, Verb, main
from jaxrun.config.config import StrictModel
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
    """

    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    search: Search = Search()


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
            [Option("overwrite", "start anew"), Option("port", "where to listen", int, 8000)],
            overrides=True,
            config=lambda: Config,
            examples=["altojax tune configs/quickstart.yaml search.rank=[8,16]"],
        ),
        "report": Verb("report", "Write the report.", tune, [Positional("runs", "run folders", many=True)]),
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
        (["report"], 2, "report: no runs given, expected run folders; see altojax report --help"),
        (
            ["tune", "a", "--overwrit"],
            2,
            "tune: unknown flag '--overwrit', expected one of --overwrite, --port, --help, --debug"
            " (did you mean '--overwrite'?)",
        ),
        (
            ["tune", "a", "--learning-rate=3"],
            2,
            "tune: unknown flag '--learning-rate', expected key=value without dashes: search.learning_rate=3;"
            " see altojax tune --help",
        ),
        (
            ["tune", "a", "--lr", "3"],
            2,
            "tune: unknown flag '--lr', expected key=value without dashes: search.learning_rate=3;"
            " see altojax tune --help",
        ),
        (
            ["tune", "a", "--bf16"],
            2,
            "tune: unknown flag '--bf16', expected key=value without dashes; see altojax tune --help",
        ),
        (["tune", "a", "--port", "x"], 2, "argument --port: invalid int value: 'x'"),
        (["tune", "a", "--port"], 2, "argument --port: expected one argument"),
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
    assert args.values == {"config": "runs/lr=1/a.yaml", "overwrite": True, "port": 9}
    assert args.overrides == ("search.rank=[8, 16]", "x=a=b")
    assert not args.debug
    program("report", "a", "b=c")
    assert program.seen[1]["runs"] == ["a", "b=c"]


def test_help_tells_verbs_arguments_and_examples(program):
    code, out, err = program("--help")
    assert (code, err) == (0, "")
    assert "Tunes adapters." in out and "report  Write the report." in out and "configs/quickstart.yaml" in out
    code, out, err = program("tune", "--help")
    assert (code, err) == (0, "")
    for words in (
        "usage: altojax tune config [key=value ...]",
        "seed    Of all draws. [whole number ≥ 0; default 0]",
        "search  What to try. [section: altojax tune --help search]",
        "a YAML file",
        "--overwrite",
        "--debug",
        "search.rank=",
    ):
        assert words in out
    code, out, err = program("--version")
    assert (code, err) == (0, "") and out.startswith("altojax ")


def test_a_closed_pipe_is_silent():
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from jaxrun.config.cli import Verb, main\n"
        "verb = Verb('talk', 'Talk.', lambda args: [print(n) for n in range(100_000)] and 0)\n"
        "sys.exit(main('altojax', {'talk': verb}, ['talk']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141
