"""Choices that fit a memory budget: rematerialisation, and rows of a step."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, ROWS, TINY_ROWS, heterogeneous, make_executor, tick

from altojax.config.tune_config import BaseSpec
from altojax.device.batch_shapes import Shape
from altojax.device.footprint import footprint
from altojax.device.memory import evaluation_rows, plan_capacity
from altojax.run.checkpoint import plain_capacity, resume
from jaxlm.devices.machine import MARGIN
from jaxlm.models.computation import Remat, remat_choices
from jaxrun.process.errors import UserError

pytestmark = pytest.mark.slow

LARGEST, SMALLEST = Shape(64, 32, 1024), Shape(4, 32, 64)
CHOICES = remat_choices(BaseSpec(model_name_or_path="x"))


@pytest.fixture(scope="module")
def executor():
    """Whose slots stay empty."""
    return make_executor(4, 8)


@pytest.fixture(scope="module")
def needs(executor):
    """Bytes of the largest step with every choice, and what is there anyway."""
    found = {}
    for choice in CHOICES:
        executor.recompute(choice)
        executor.programs.get("train", LARGEST)
        found[choice.remat] = executor.programs.stats().done[-1].temp_bytes
    return found, executor.resident_bytes()


def budget(step_bytes, resident):
    return int((resident + step_bytes) / (1 - MARGIN)) + 1024


@pytest.mark.parametrize("choice", CHOICES, ids=lambda one: one.remat)
def test_a_compiled_step_takes_what_was_said_of_it(executor, needs, choice):
    """Within 15 %: what a compiler adds (copies, gaps between buffers) is foreseen on average alone."""
    kinds = {"dtype": jnp.float32, "remat": choice, "training": LARGEST, "evaluation": LARGEST}
    assert footprint(CONFIG, executor.plan, **kinds).training == pytest.approx(needs[0][choice.remat], rel=0.15)


def test_a_step_that_computes_more_again_needs_less(needs):
    none, dots, full = (needs[0][choice.remat] for choice in CHOICES)
    assert none > dots > full > 0


def test_layers_compiled_in_place_need_less_too_when_more_is_computed_again():
    """XLA must not find the same value computed twice, and keep the first."""
    executor, needed = make_executor(4, 8, config=replace(CONFIG, num_layers=3)), {}
    for remat in ("none", "full"):
        executor.recompute(Remat(remat, scan_layers=False))
        executor.programs.get("train", LARGEST)
        needed[remat] = executor.programs.stats().done[-1].temp_bytes
    assert needed["full"] < 0.7 * needed["none"]


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_backward_pass_computes_the_least_again_with_which_all_slots_train(executor, needs, remat):
    capacity = plan_capacity(executor, CHOICES, LARGEST, SMALLEST, budget(needs[0][remat], needs[1]))
    assert capacity.remat.remat == remat
    assert capacity.rows == LARGEST.rows
    assert capacity.step_bytes == needs[0][remat]


def test_a_step_that_fits_is_the_only_one_compiled(needs):
    executor = make_executor(4, 8)
    plan_capacity(executor, CHOICES, LARGEST, SMALLEST, budget(needs[0]["none"], needs[1]))
    assert len(executor.programs.stats().done) == 1


def test_where_nothing_fits_all_slots_a_step_holds_fewer_rows_and_what_the_user_chose_stays(executor, needs):
    chosen = remat_choices(BaseSpec(model_name_or_path="x", remat="none"))
    assert chosen == [Remat("none", scan_layers=True)]
    capacity = plan_capacity(executor, chosen, LARGEST, SMALLEST, budget(needs[0]["dots"] * 0.9, needs[1]))
    assert capacity.remat.remat == "none"
    assert SMALLEST.rows <= capacity.rows < LARGEST.rows


@pytest.mark.parametrize(
    ("share", "message"),
    [(0.5, "the base and its slots alone take"), (1.1, "and the smallest step .* a smaller batch or shorter rows")],
)
def test_a_budget_that_holds_nothing_is_refused_with_what_it_lacks(executor, needs, share, message):
    with pytest.raises(UserError, match=f"memory_budget: .* {message}"):
        plan_capacity(executor, CHOICES[:1], LARGEST, SMALLEST, int(share * needs[1]))


def test_a_change_of_what_is_computed_again_keeps_state_and_losses():
    """With the largest steps, which other tests compile too."""
    losses = {}
    for choice in CHOICES:
        executor, runners = make_executor(4, 8), heterogeneous()
        for slot, runner in enumerate(runners):
            runner.enter(executor, slot)
        executor.recompute(choice)
        executor.programs.shape_of = lambda step, parts: LARGEST
        losses[choice.remat] = [tick(executor, runners) for _ in range(4)]
    for remat in ("dots", "full"):
        np.testing.assert_allclose(losses[remat], losses["none"], rtol=1e-5)


def test_a_checkpoint_goes_on_with_what_was_chosen(executor, needs):
    capacity = plan_capacity(executor, CHOICES, LARGEST, SMALLEST, budget(needs[0]["dots"], needs[1]))
    shapes = {"train": [[64, 32, 1024]], "eval": []}
    coming = {"train": [8, 16, 64, 4000]}
    manifest = {"capacity": plain_capacity(capacity), "held": "one device", "shapes": shapes, "coming": coming}
    checkpoint = SimpleNamespace(manifest=json.loads(json.dumps(manifest)))
    resumed = make_executor(4, 8)
    assert resume(resumed, checkpoint, "one device", capacity.budget_bytes) == capacity
    assert resumed.programs.shapes() == {"shapes": shapes, "coming": coming}
    assert resume(resumed, checkpoint, "two devices", capacity.budget_bytes) is None, "another mesh holds other steps"


def test_a_part_of_the_largest_step_that_fills_the_device_is_taken_before_more_is_computed_again(executor, needs):
    tokens, none = LARGEST.rows * LARGEST.length, needs[0]["none"]
    given = budget(none * 0.7, needs[1])
    capacity = plan_capacity(executor, CHOICES, LARGEST, SMALLEST, given, enough=tokens // 2)
    assert capacity.remat.remat == "none" and capacity.step_bytes == none
    assert LARGEST.rows // 2 <= capacity.rows < LARGEST.rows
    assert plan_capacity(executor, CHOICES, LARGEST, SMALLEST, given, enough=tokens).remat.remat != "none"


def test_an_evaluation_fills_a_device_with_no_more_rows_than_a_training_step_may_hold(executor):
    rows = evaluation_rows(64, TINY_ROWS, executor.sharding.own_slots)
    assert rows == 8 and evaluation_rows(3, TINY_ROWS, 4) == 3 and evaluation_rows(64, TINY_ROWS, 20) == 20
    for parts in executor.sharding.eval_batches([(slot, ROWS) for slot in range(4)], TINY_ROWS, rows):
        assert executor.programs.need(parts).rows <= rows
