"""Executors that are alike in all that a step depends on share what JAX traced and compiled of it."""

import logging
from collections.abc import Callable, Iterator

import jax
import pytest
import tiny

from altojax.device import programs

KEPT: dict = {}


@pytest.fixture(scope="package", autouse=True)
def shared_steps(forgets: list[Callable[[], object]]) -> Iterator[None]:
    """Hands out the same jitted steps for the same structure, shapes and mesh; they hold no weights and no state."""
    jitted_steps = programs.jitted_steps

    def shared(frozen, state, sharding, plan, head_chunk):
        leaves, tree = jax.tree.flatten((frozen.weights, state))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        of_plan = (plan.slots, plan.rank, plan.drops, plan.objective, plan.averages)
        key = (frozen.graph, tree, shapes, sharding.layout, of_plan, head_chunk)
        if key not in KEPT:
            KEPT[key] = jitted_steps(frozen, state, sharding, plan, head_chunk)
        return KEPT[key]

    forgets[:0] = [KEPT.clear, tiny.forget_executors]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programs, "jitted_steps", shared)
        yield


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without tables, plots and page, which take longer than they train."""
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])


@pytest.fixture
def compile_log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Names of the functions that XLA compiles."""
    jax.config.update("jax_log_compiles", True)
    caplog.set_level(logging.WARNING, logger="jax")
    yield lambda: [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    jax.config.update("jax_log_compiles", False)
