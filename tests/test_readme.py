"""What README.md, the help texts and configs/ promise must be there: verbs, settings, targets, files."""

import dataclasses
import gzip
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from altojax import cli
from altojax.evaluate import EvaluateSettings
from altojax.export import ExportSettings
from altojax.generate import GenerateSettings
from altojax.search import TuneConfig, configurations
from harness.cli import Args
from harness.cli import main as run_program
from harness.config import check_config, load_config
from harness.settings import read_settings
from harness.strict_yaml import parse_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TUNE_MINIMUM = {
    "output_dir": "runs/x",
    "model": {"model_name_or_path": "base"},
    "tasks": [{"name": "x", "data": {"train": "x"}}],
}
SETTINGS = {"evaluate": EvaluateSettings, "export": ExportSettings, "generate": GenerateSettings}
LETTER_BY_LETTER = {"evaluate": ("answer_pattern", "separator"), "generate": ("prompt", "system")}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def readme_commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("altojax ")]


def help_commands() -> list[str]:
    return [example for verb in cli._verbs().values() for example in verb.examples]


def parse(command: str, capsys) -> tuple[str, Args | None]:
    """The verb a command names and what it would be given, without running it."""
    seen: list[Args] = []

    def record(args: Args) -> int:
        seen.append(args)
        return 0

    words = shlex.split(command, comments=True)[1:]
    verbs = {name: dataclasses.replace(verb, run=record) for name, verb in cli._verbs().items()}
    code = run_program("altojax", verbs, words)
    assert code == 0, capsys.readouterr().err
    return words[0], seen[0] if seen else None


@pytest.mark.parametrize("command", [*readme_commands(), *help_commands()])
def test_a_command_that_is_shown_has_a_verb_and_settings_that_exist(command, capsys, tmp_path, monkeypatch):
    verb, args = parse(command, capsys)
    if verb in SETTINGS:
        settings = read_settings(SETTINGS[verb], args.overrides, text=LETTER_BY_LETTER.get(verb, ()))
        assert settings.model_fields_set == {word.partition("=")[0] for word in args.overrides}
    elif verb in ("tune", "doctor") and args["config"] is not None:
        config = ROOT / args["config"]
        if not args["config"].startswith("configs/"):
            config = tmp_path / args["config"]
            config.write_text(blocks("yaml")[0])
        overrides = [word for word in args.overrides if not (verb == "tune" and word.startswith("overwrite="))]
        if "configurations" in config.read_text():
            overrides.append("search.configurations=null")
        loaded = load_config(TuneConfig, config, overrides)
        assert all(configurations(loaded, task) for task in loaded.tasks)
    elif verb == "replay":
        curves = b"group,trial,step,max_steps,train_loss,val_loss\n" + b"".join(
            b"g,%d,%d,10,1.0,%d.5\n" % (trial, step, 1 + trial) for trial in range(3) for step in range(1, 11)
        )
        monkeypatch.chdir(tmp_path)
        Path(args["curves"]).write_bytes(gzip.compress(curves) if args["curves"].endswith(".gz") else curves)
        assert cli.main(shlex.split(command)[1:]) == 0


def test_the_readme_shows_every_verb_at_work():
    shown = {command.split()[1] for command in readme_commands()}
    assert shown >= set(cli._verbs())


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_config_that_the_readme_shows_is_valid(block):
    config = check_config(TuneConfig, {**TUNE_MINIMUM, **parse_yaml(block, "README.md")}, "README.md")
    assert all(configurations(config, task) for task in config.tasks)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_is_valid(path):
    config = load_config(TuneConfig, path, [])
    assert all(configurations(config, task) for task in config.tasks)


def test_python_that_the_readme_shows_compiles():
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_both_commands_of_the_readme_are_targets_and_tuning_needs_no_reference_environment():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["tune", "test"]
    plans = {}
    for target in targets:
        command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), target]
        plans[target] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "altojax tune configs/quickstart.yaml" in plans["tune"]
    assert "reference" not in plans["tune"]
    assert "pytest" in plans["test"]


def test_files_that_the_readme_links_or_lists_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    listed, folder = [], ""
    for line in blocks("text")[0].splitlines():
        names = line.strip().split("  ")[0].split()
        inside = line.startswith("  ")
        listed += [folder + name if inside else name for name in names]
        folder = folder if inside else names[0]
    missing = [name for name in [*links, *listed] if not (ROOT / name).exists()]
    assert not missing
    assert len(listed) > 15
