"""Predicted memory of a run against what it takes."""

from dataclasses import replace

import jax.numpy as jnp
import pytest
from families import DISTINCT
from tiny import CONFIG, make_executor

from altojax.device.batch_shapes import Shape
from altojax.device.footprint import footprint
from jaxlm.families.registry import random_config
from jaxlm.models.computation import Remat

pytestmark = pytest.mark.slow

STEP = Shape(64, 32, 1024)


def predicted(executor, remat="none", config=CONFIG, training=STEP, evaluation=STEP):
    kinds = {"dtype": jnp.float32, "remat": Remat(remat, scan_layers=True), "layout": executor.sharding.layout}
    return footprint(config, executor.plan, training=training, evaluation=evaluation, **kinds)


@pytest.mark.parametrize("family", DISTINCT)
def test_what_stays_on_a_device_is_known_to_the_byte(family):
    config, accumulates = random_config(family), DISTINCT.index(family) % 2 == 0
    executor = make_executor(3, 4, config=config, accumulates=accumulates)
    found = predicted(executor, config=config)
    assert found.resident == executor.resident_bytes()
    assert (found.accumulators > 0) == accumulates
    assert found.kept == found.adapters and found.moments == 2 * found.adapters + 4 * 3


def test_on_a_mesh_it_is_what_one_device_has_of_it():
    executor = make_executor(4, 8, mesh={"adapter": 2, "tensor": 2, "data": 2}, optimizer_state="int8")
    assert predicted(executor).resident == executor.resident_bytes()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_compiled_step_takes_what_was_said_of_it(remat):
    """Within 15 %: what a compiler adds (copies, gaps between buffers) is foreseen on average alone."""
    executor = make_executor(4, 8)
    executor.recompute(Remat(remat, scan_layers=True))
    found = predicted(executor, remat)
    executor.programs.get("train", STEP)
    assert found.training == pytest.approx(executor.programs.stats().done[-1].temp_bytes, rel=0.15)


def test_the_more_slots_and_rows_the_more_a_step_takes():
    few = predicted(make_executor(2, 8), "full")
    more = [
        predicted(make_executor(4, 8), "full"),
        predicted(make_executor(2, 8), "full", training=replace(STEP, rows=128)),
    ]
    assert all(one.training > few.training for one in more)
