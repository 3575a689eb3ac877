"""Runs of a file of tests, by the config in its folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from stopping import AskedAfter

from altojax.config.tune_config import TuneConfig
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config


@pytest.fixture(scope="module")
def tune(folder: Path, few_shapes: None) -> Iterator[Callable[..., int]]:
    """Makes a run of some name with some overrides, maybe stopped after some looks; returns its exit code."""

    def run(name: str, *overrides: str, looks: int = 10_000) -> int:
        config = load_config(TuneConfig, folder / "run.yaml", [*overrides, f"output_dir={folder}/{name}"])
        return Tuner(config, console=Console(quiet=True)).run(AskedAfter(looks))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        yield run


@pytest.fixture(scope="module")
def whole(folder: Path, tune: Callable[..., int]) -> Path:
    """A run that was never interrupted."""
    assert tune("whole") == 0
    return folder / "whole"
