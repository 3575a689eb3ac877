"""README.md, docs/, help texts and configs/ name only what exists: verbs, settings, targets, files, links."""

import dataclasses
import gzip
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from altojax import cli as altojax_cli
from altojax.cluster.service.submission_builder import SubmitConfig
from altojax.cluster.service.verbs.queue_table import QueueSettings, TableSettings
from altojax.cluster.service.verbs.serve import ServeConfig
from altojax.cluster.simulation.workload import Workload
from altojax.config.search.configurations import configurations
from altojax.config.tune_config import TuneConfig
from altojax.inference.evaluate import EvaluateSettings
from altojax.inference.export import ExportSettings
from altojax.inference.generate import GenerateSettings
from jaxrun.config.cli import main as run_program
from jaxrun.config.config import StrictModel, check_config, load_config
from jaxrun.config.settings import read_settings
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.config.verbs import Args, Verb
from jaxrun.store.journal import Journal
from jaxrun.store.records import Point
from twistjax import cli as twistjax_cli
from twistjax.config import TwistConfig
from twistjax.training.rounds_plan import plan_of

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = {path: path.read_text() for path in (*sorted(ROOT.glob("*.md"), reverse=True), *sorted(DOCS.rglob("*.md")))}
"""Every page of the project, the README first."""
LINES_AT_MOST = 200
UNBOUNDED = {"CHANGELOG.md", "log.md", "altojax-keys.md", "twistjax-keys.md"}
"""Pages to which lines are only added, and those that scripts/docs/ writes."""
MINIMUM = {
    TuneConfig: {
        "output_dir": "runs/x",
        "model": {"model_name_or_path": "base"},
        "tasks": [{"name": "x", "data": {"train": "x"}}],
    },
    TwistConfig: {"output_dir": "runs/x", "model": {"model_name_or_path": "base"}, "data": {"train": "x"}},
    ServeConfig: {},
}
VERBS: dict[str, Mapping[str, Verb]] = {"altojax": altojax_cli.VERBS, "twistjax": twistjax_cli.VERBS}
CONFIGS: dict[str, type[StrictModel]] = {
    "altojax tune": TuneConfig,
    "altojax doctor": TuneConfig,
    "altojax show": TuneConfig,
    "altojax submit": SubmitConfig,
    "altojax serve": ServeConfig,
    "altojax simulate": Workload,
    "twistjax train": TwistConfig,
    "twistjax doctor": TwistConfig,
    "twistjax baselines": TwistConfig,
    "twistjax show": TwistConfig,
}
SETTINGS = {
    "altojax evaluate": EvaluateSettings,
    "altojax export": ExportSettings,
    "altojax generate": GenerateSettings,
    "altojax queue": TableSettings,
    **{f"altojax {verb}": QueueSettings for verb in ("cancel", "pause", "resume")},
    "twistjax tickets": twistjax_cli.TicketSettings,
    "twistjax export": twistjax_cli.TicketExportSettings,
    "twistjax measure": twistjax_cli.MeasureSettings,
}
NO_KEYS = ("overwrite", "wait", "out", "plot", "task", "split", "rows", "row", "json")
"""What some verbs take that read a config, and is none of its keys."""
LETTER_BY_LETTER = {"altojax evaluate": ("answer_pattern", "separator"), "altojax generate": ("prompt", "system")}
LAUNCHER = re.compile(
    r"^(?:[A-Z_]+=\S+ |sbatch (?:--\S+ )*scripts/launch/slurm\.sbatch |scripts/launch/tpu_vm\.sh \S+ \S+ )*"
)


def blocks(language: str) -> list[str]:
    """The fenced blocks of all pages in a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [block for text in PAGES.values() for block in fence.findall(text)]


def kind_of(block: str) -> type[StrictModel]:
    """Whose config a block is."""
    keys = set(parse_yaml(block, "a page"))
    return ServeConfig if "tenants" in keys else TwistConfig if {"subnetworks", "training"} & keys else TuneConfig


def shown_commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    bare = [LAUNCHER.sub("", line) for line in lines]
    return [line for line in bare if line.startswith(tuple(f"{program} " for program in VERBS))]


def help_commands() -> list[str]:
    return [example for verbs in VERBS.values() for verb in verbs.values() for example in verb.examples]


def parse(command: str, capsys) -> tuple[str, Args | None]:
    """The program and verb that a command names and what they would be given, without running it."""
    seen: list[Args] = []

    def record(args: Args) -> int:
        seen.append(args)
        return 0

    program, *words = shlex.split(command, comments=True)
    verbs = {name: dataclasses.replace(verb, run=record) for name, verb in VERBS[program].items()}
    code = run_program(program, verbs, words)
    assert code == 0, capsys.readouterr().err
    return f"{program} {words[0]}", seen[0] if seen else None


def write_curves(path: Path) -> None:
    """Three trials of ten steps: a file, or the folder of a run."""
    curves = [(trial, step, 1.5 + trial) for trial in range(3) for step in range(1, 11)]
    if "csv" in path.name:
        lines = [f"g,{trial},{step},10,1.0,{loss}\n" for trial, step, loss in curves]
        text = "".join(["group,trial,step,max_steps,train_loss,val_loss\n", *lines]).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return
    config = next(block for block in blocks("yaml") if kind_of(block) is TuneConfig)
    sizes = {"total_steps": 10, "total_samples": 10, "schedule": {"total_steps": 10, "twice": 0.2, "warmup": 0.0}}
    with Journal.open(path, config_text=config, identity="d") as journal:
        journal.set("trials", [{"task": "support", "trial": str(trial), "config": {}, **sizes} for trial in range(3)])
        journal.append(0, points=[Point("support", str(n), step, 0, 0, "validation", loss) for n, step, loss in curves])


def assert_complete(config: StrictModel) -> None:
    if isinstance(config, TuneConfig):
        assert all(configurations(config, task) for task in config.tasks)
    elif isinstance(config, TwistConfig):
        assert plan_of(config, rows=10_000).rounds > 0


@pytest.mark.parametrize("command", list(dict.fromkeys([*shown_commands(), *help_commands()])))
def test_a_command_that_is_shown_has_a_verb_and_settings_that_exist(command, capsys, tmp_path, monkeypatch):
    verb, args = parse(command, capsys)
    if verb in SETTINGS:
        settings = read_settings(SETTINGS[verb], args.overrides, text=LETTER_BY_LETTER.get(verb, ()))
        assert settings.model_fields_set == {word.partition("=")[0] for word in args.overrides}
    elif verb in CONFIGS:
        [given] = [args.values.get(name) for name in ("config", "task", "workload") if name in args.values]
        kind, config = CONFIGS[verb], tmp_path / (given or "empty.yaml")
        if given is None and verb.endswith(" doctor"):
            return
        if given is None:
            config.write_text("{}")
        elif given.startswith("configs/"):
            config = ROOT / given
        else:
            config.write_text(next(block for block in blocks("yaml") if issubclass(kind, kind_of(block))))
        overrides = [word for word in args.overrides if word.partition("=")[0] not in NO_KEYS]
        if "configurations" in config.read_text():
            overrides.append("search.configurations=null")
        assert_complete(load_config(kind, config, overrides))
    elif verb == "altojax replay":
        monkeypatch.chdir(tmp_path)
        write_curves(Path(args["curves"]))
        assert altojax_cli.main(shlex.split(command)[1:]) == 0


def test_verbs_and_help_that_sentences_name_exist(capsys):
    spans = {span for text in PAGES.values() for span in re.findall(r"`((?:altojax|twistjax) [^`]+)`", text)}
    for program, verb, *words in map(str.split, spans):
        assert verb in (*VERBS[program], "VERB", "--help", "--version"), (program, verb)
        if verb in VERBS[program] and "--help" in words:
            assert run_program(program, VERBS[program], [verb, *words]) == 0, capsys.readouterr().err
    assert len(spans) > 20


@pytest.mark.parametrize("program", VERBS)
def test_the_docs_show_every_verb_at_work(program):
    shown = {command.split()[1] for command in shown_commands() if command.split()[0] == program}
    assert shown >= set(VERBS[program])


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_config_that_is_shown_is_valid(block):
    kind = kind_of(block)
    assert_complete(check_config(kind, {**MINIMUM[kind], **parse_yaml(block, "a page")}, "a page"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_of_altojax_is_valid(path):
    assert_complete(load_config(TuneConfig, path, []))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "twistjax").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_of_twistjax_is_valid(path):
    assert_complete(load_config(TwistConfig, path, []))


def test_scripts_that_are_shown_exist_and_can_be_called():
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    named = {word for words in lines for word in words if word.startswith("scripts/")}
    called = {words[0] for words in lines if words and words[0].startswith("scripts/")}
    assert len(named) >= 5 and all((ROOT / word).is_file() for word in named)
    assert called and all(os.access(ROOT / word, os.X_OK) for word in called)


def test_commands_of_the_docs_call_scripts_and_flags_that_exist():
    command = re.compile(r"^(?: {4}|\.venv/bin/)python (scripts/[\w/]+\.py)((?: [^\n#]|\\\n +)*[^\n#]*)", re.MULTILINE)
    called = [found for text in PAGES.values() for found in command.finditer(text)]
    for found in called:
        assert (ROOT / found[1]).is_file(), found[0]
        source = with_neighbours(ROOT / found[1])
        for flag in re.findall(r"(?<!\S)--([a-z][a-z-]*)", found[2]):
            assert re.search(rf'"(--)?{flag.removeprefix("no-")}"', source), f"{found[0]}: --{flag}"
    assert len(called) > 15


def with_neighbours(script):
    """The source of a script, and of the modules beside it that it imports."""
    source = script.read_text()
    beside = [script.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", source, re.MULTILINE)]
    return "".join([source, *(path.read_text() for path in beside if path.is_file())])


def test_extras_and_wheels_that_are_installed_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = "\n".join(PAGES.values())
    extras = set(re.findall(r"(?:-e '\.|\.whl)\[(\w+)\]'", told))
    assert extras >= {"gpu", "tpu", "serve", "plan", "cluster", "track"} and extras <= set(
        project["optional-dependencies"]
    )
    assert set(re.findall(r"altojax-([\w.]+)-py3", told)) == {project["version"]}


def test_python_that_is_shown_compiles():
    for block in blocks("python"):
        compile(block, "a page", "exec")


def test_the_commands_of_the_start_are_targets_and_quick_starts_need_no_reference_environment():
    targets = re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["tune", "twist"]
    targets += re.findall(r"`make ([\w-]+)`", PAGES[ROOT / "README.md"])
    plans = {}
    for target in (*targets, "help"):
        command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), target]
        plans[target] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "altojax tune configs/quickstart.yaml" in plans["tune"]
    assert "twistjax train configs/twistjax/quickstart.yaml" in plans["twist"]
    assert "reference" not in plans["tune"] + plans["twist"]
    assert "pytest" in plans["test"]


def test_make_twist_names_settings_folders_and_kappas_that_fit_its_config(capsys):
    config = load_config(TwistConfig, ROOT / "configs" / "twistjax" / "quickstart.yaml", [])
    plan = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), "twist"]
    lines = subprocess.run(plan, capture_output=True, text=True, check=True).stdout.splitlines()
    commands = [line.partition("bin/")[2] for line in lines if "bin/twistjax" in line]
    found = {}
    for command in commands:
        verb, args = parse(command, capsys)
        settings = read_settings(SETTINGS[verb], args.overrides) if verb in SETTINGS else None
        found.setdefault(verb, []).append((args, settings))
    [(drawn, _)], [(written, export)] = found["twistjax tickets"], found["twistjax export"]
    assert drawn["run"] == written["run"] == config.output_dir
    assert export.kappa in config.subnetworks.ladder
    assert [args["model"] for args, _ in found["twistjax measure"]] == [config.model.model_name_or_path, export.out]
    assert {settings.data for _, settings in found["twistjax measure"]} == {config.data.validation}


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_and_figure_of_the_docs_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES.get(page, ""))]
        waiting += {(page.parent / link).resolve() for link in links if link and "://" not in link} - reached
    assert not {path for path in DOCS.rglob("*.*") if path.suffix != ".gz"} - reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short(page):
    assert page.name in UNBOUNDED or PAGES[page].count("\n") <= LINES_AT_MOST


def test_the_docs_fit_one_look():
    assert len(list(DOCS.iterdir())) <= 15


def test_the_tree_of_the_architecture_names_what_is_there():
    listed, folder = [], ""
    [tree] = re.findall(r"^```text\n(.*?)^```$", PAGES[DOCS / "architecture.md"], re.MULTILINE | re.DOTALL)
    for line in tree.splitlines():
        names = line.strip().split("  ")[0].split()
        inside = line.startswith("  ")
        listed += [folder + name if inside else name for name in names]
        folder = folder if inside else names[0]
    assert not [name for name in listed if not (ROOT / name).exists()]
    assert len(listed) > 15
