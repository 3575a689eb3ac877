"""The number of slots of a run, and the message where those asked for do not fit."""

import io
import json
import os
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import twistjax.cli
from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.run.load_base import _most, build_executor, footprint_of, place
from altojax.run.prepare import prepare
from altojax.run.tuner import Tuner
from jaxlm.devices.machine import MARGIN, device_budget, group_limits
from jaxrun.config.verbs import Verb
from jaxrun.process.errors import UserError

TINY = Path(__file__).parents[3] / "configs" / "tiny"


def given_run(folder: Path, budget: int | None = None, **more) -> TuneConfig:
    """A run of eight trials."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {i}, and more words"}) + "\n" for i in range(20)))
    run = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True},
        "search": {"lora_rank": [8, 64], "learning_rate": [1e-3, 1e-2], "batch_size": [2, 4]},
        "tasks": [{"name": "rows", "data": {"train": str(rows), "max_length": 64}}],
        "memory_budget": budget,
    }
    return TuneConfig.model_validate(run | more)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = given_run(tmp_path_factory.mktemp("run"))
    return config, prepare(config).bases[0]


def budget_for(peak: int) -> int:
    return int(peak / (1 - MARGIN)) + 64


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_without_slots_a_run_gets_as_many_as_fit(run, slots):
    config, base = run
    least = footprint_of(config, base, None, slots)
    tight = config.model_copy(update={"memory_budget": budget_for(least.peak)})
    assert place(tight, base).slots == slots


def test_no_more_slots_than_trials_are_of_use(run):
    config, base = run
    assert place(config, base).slots == len(base.trials) == 8


def test_slots_that_do_not_fit_are_refused_with_how_many_do_and_nothing_is_loaded(run, monkeypatch):
    config, base = run
    fits = footprint_of(config, base, None, 3).peak
    tight = config.model_copy(update={"memory_budget": budget_for(fits), "slots": 8})
    assert footprint_of(config, base, None, 8, smallest=True).peak > fits
    monkeypatch.setattr("altojax.run.load_base.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=r"^slots: 8: would take [0-9.]+ MiB of a device .*; expected at most 3 slots$"):
        build_executor(place(tight, base))


def test_where_not_one_slot_fits_it_says_what_would_help(run):
    config, base = run
    tight = config.model_copy(update={"memory_budget": 300_000})
    with pytest.raises(UserError, match=r"^memory_budget: would take .*; expected a larger memory_budget, a smaller"):
        build_executor(place(tight, base))


def test_tune_and_doctor_refuse_them_alike_and_write_nothing(tmp_path, capsys):
    config = given_run(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    said = []
    for verb in ("doctor", "tune"):
        assert main([verb, str(file), "slots=8", "memory_budget=1MiB"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and "slots: 8: would take" in said[0] and said[0].count("\n") == 1
    assert not (tmp_path / "run").exists()


@given(st.integers(1, 100), st.integers(0, 200))
def test_the_most_that_fit_are_found(wanted, limit):
    assert _most(wanted, lambda count: count <= limit) == min(wanted, limit)


def test_a_container_has_the_memory_that_it_may_use(tmp_path):
    (tmp_path / "cgroup").write_text("4:memory:/old/job\n0::/outer/inner\n")
    groups = tmp_path / "mounted"
    files = {"outer/memory.max": "max", "outer/inner/memory.max": "4096", "memory/old/memory.limit_in_bytes": "8192"}
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    assert sorted(group_limits(tmp_path / "cgroup", groups)) == [4096, 8192]
    assert group_limits(tmp_path / "none", groups) == []
    assert device_budget() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456789 bytes."


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("altojax.run.load_base.load_model", jax.errors.JaxRuntimeError(EXHAUSTED)),
        ("altojax.device.programs._compile", MemoryError()),
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_would_fit(where, error, tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(where, fails)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(given_run(tmp_path).model_dump(mode="json", exclude_unset=True)))
    assert main(["tune", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "altojax: error: out of memory on cpu" in said
    assert "8 slots that were predicted to take" in said and "expected slots=8 memory_budget=" in said
    assert ("123456789 bytes more were asked for" in said) == bool(str(error))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", [main, twistjax.cli.main])
def test_memory_that_runs_out_elsewhere_is_one_line_too(program, capsys, monkeypatch):
    def fails(_):
        raise jax.errors.JaxRuntimeError(EXHAUSTED)

    verbs = {"measure": Verb("measure", "Fails.", fails)}
    monkeypatch.setattr("altojax.cli.VERBS", verbs)
    monkeypatch.setattr("twistjax.cli.VERBS", verbs)
    assert program(["measure"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of memory on cpu when 123456789 bytes more were asked for; expected" in said


def test_what_was_read_is_said_before_the_base_is_loaded(tmp_path, monkeypatch):
    told = io.StringIO()

    def load(tuner, *_):
        raise UserError("loads the base")

    monkeypatch.setattr(Tuner, "_make_ready", load)
    with pytest.raises(UserError, match="loads the base"):
        Tuner(given_run(tmp_path), console=Console(file=told, width=200)).run()
    lines = [line.partition("  ")[2] for line in told.getvalue().splitlines()]
    assert lines[0] == "reading the rows of 1 task"
    assert any(line.startswith("rows: ") and "18 rows" in line for line in lines[1:-1])
    assert lines[-1] == f"loading {TINY}, and compiling the first steps"
