"""The laws hold for experts, whatever tokens of other trials meet them, and for convolutions beside attention."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, LARGE, ROWS, difference, make_executor, make_runner, tick

from altojax.device.executor import Executor
from jaxlm.families.registry import random_config
from jaxlm.models.computation import Remat

pytestmark = pytest.mark.slow

LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5  # as in test_solo_law.py
SIZES = ("num_layers", "vocab_size", "num_heads", "num_kv_heads", "head_dim")
SHAPE = {one: getattr(CONFIG, one) for one in SIZES}
MIXTURE = replace(random_config("gpt_oss"), **SHAPE, sliding_pattern=(True, False), swiglu_limit=1.0)
"""With biases, sinks and windows as well."""
KEYS = ("self_attn.q_proj", "self_attn.v_proj")
SHAPES = random_config("lfm2")
IN_TWO_SHAPES = ("self_attn.q_proj", "self_attn.v_proj", "conv_layers.conv.in_proj", "conv_layers.conv.out_proj")
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
TICKS = 4
STEADY = {"epsilon": 1e-5}
"""AdamW's, above the rounding of gradients, which it else divides by a root as small."""


def trials(config):
    if config is SHAPES:
        return [
            make_runner(1, 4, 2, keys=IN_TWO_SHAPES, config=SHAPES, dropout=0.1, **STEADY),
            make_runner(2, 8, 1, keys=IN_TWO_SHAPES[2:], config=SHAPES, scale=4.0, **STEADY),
            make_runner(3, 2, 3, keys=IN_TWO_SHAPES[:1], config=SHAPES, **STEADY),
        ]
    return [
        make_runner(1, 4, 2, keys=KEYS, dropout=0.1, **STEADY),
        make_runner(2, 8, 1, keys=(*KEYS, *EXPERTS), config=MIXTURE, scale=4.0, **STEADY),
        make_runner(3, 2, 3, keys=EXPERTS, config=MIXTURE, **STEADY),
    ]


def trained(executor: Executor, runners, slots):
    """Losses, validation losses and what is in the slots in the end."""
    for runner, slot in zip(runners, slots, strict=True):
        runner.enter(executor, slot)
    losses = np.array([tick(executor, runners) for _ in range(TICKS)]).T
    found = executor.evaluate([(one.slot, ROWS[:7]) for one in runners], 8)
    measured = [found[one.slot] for one in runners]
    for runner in runners:
        runner.leave(executor)
    return [*zip(losses, measured, (one.snapshot for one in runners), strict=True)]


def agree(found, wanted):
    for (losses, measured, snapshot), (solo_losses, solo_measured, solo) in zip(found, wanted, strict=True):
        assert np.abs(losses - solo_losses).max() <= LOSS_BOUND
        assert abs(measured - solo_measured) <= LOSS_BOUND
        assert difference(snapshot["adapters"], solo["adapters"]) <= ADAPTER_BOUND


@pytest.fixture(scope="module", params=(MIXTURE, SHAPES), ids=("experts", "shapes"))
def config(request):
    return request.param


def of_one_shape(executor: Executor) -> Executor:
    """The executor, whose batches are all LARGE."""
    executor.programs.shape_of = lambda step, parts: LARGE
    return executor


@pytest.fixture(scope="module")
def executor(config):
    return of_one_shape(make_executor(4, 8, config=config))


@pytest.fixture(scope="module")
def together(executor, config):
    return trained(executor, trials(config), (3, 0, 2))


def test_trials_together_get_what_each_gets_alone(executor, together, config):
    agree([trained(executor, [one], (1,))[0] for one in trials(config)], together)


def test_a_neighbour_that_is_not_finite_changes_no_bit(executor, together, config):
    runners = trials(config)
    sick = jax.tree.map(lambda array: np.full_like(array, np.nan), runners[1].snapshot["adapters"])
    runners[1].snapshot["adapters"] = sick
    found = trained(executor, runners, (3, 0, 2))
    assert np.isnan(found[1][0]).all()
    for place in (0, 2):
        np.testing.assert_array_equal(found[place][0], together[place][0])
        assert difference(found[place][2]["adapters"], together[place][2]["adapters"]) == 0


def test_weights_shared_out_over_a_mesh_and_computed_again_change_nothing(together, config):
    mesh, remat = {"adapter": 2, "tensor": 2}, Remat("dots", scan_layers=False)
    if config is SHAPES:
        mesh, remat = {"adapter": 2}, Remat("full", scan_layers=True)  # in_proj is three in one
    shared = of_one_shape(make_executor(4, 8, config=config, mesh=mesh, remat=remat))
    kernel = nnx.state(shared.model())["layers"]["mlp"]
    kernel = (kernel["experts"]["gate_up_proj"] if config.routed else kernel["down_proj"])["kernel"].get_value()
    assert kernel.sharding.shard_shape(kernel.shape) == ((2, 4, 32, 32) if config.routed else (2, 96, 32))
    agree(trained(shared, trials(config), (3, 0, 2)), together)
