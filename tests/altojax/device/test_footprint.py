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


def predicted(executor, remat="none", config=CONFIG, training=STEP, plan=None):
    kinds = {"dtype": jnp.float32, "remat": Remat(remat, scan_layers=True), "layout": executor.sharding.layout}
    return footprint(config, plan or executor.plan, training=training, evaluation=STEP, **kinds)


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


def test_the_more_slots_and_rows_the_more_a_step_takes():
    executor = make_executor(2, 8)
    few = predicted(executor, "full")
    more = [
        predicted(executor, "full", plan=replace(executor.plan, slots=4)),
        predicted(executor, "full", training=replace(STEP, rows=128)),
    ]
    assert all(one.training > few.training for one in more)
