"""The laws on a mesh of eight devices: the solo law, what crosses between devices, and what each of them holds."""

import re
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import (
    CONFIG,
    HYPER,
    LARGE,
    PROJECTIONS,
    ROWS,
    SCANNED,
    difference,
    heterogeneous,
    make_executor,
    make_runner,
    of_few_shapes,
    shared_executor,
    tick,
)

from altojax.device.batch_shapes import Shape
from altojax.device.executor import Executor
from altojax.device.multi_lora.routing import LoRA
from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.models.computation import Remat

pytestmark = pytest.mark.slow

LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5
TICKS = 6
MESHES = {
    "8": {"adapter": 8},
    "1x8": {"adapter": 1, "tensor": 8},
    "2x2 and 2 replicas": {"adapter": 2, "tensor": 2, "data": 2},
    "2x2 and 2 replicas, base whole": {"adapter": 2, "tensor": 2, "data": 2, "shard_base": False},
}
"""Groups alone, parts of layers alone, and every pair of axes, with the base whole too."""
SLOTS = (0, 5, 3, 6)
IN_PLACE = Remat("none", scan_layers=False)
COLLECTIVE = re.compile(r"= (\w+)\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)")


def train(executor: Executor) -> tuple[list, list]:
    """Losses and snapshots of four different trials."""
    runners = heterogeneous()
    for runner, slot in zip(runners, SLOTS, strict=True):
        runner.enter(executor, slot)
    losses = [tick(executor, runners) for _ in range(TICKS)]
    return losses, [executor.take(one.slot, one.rank, one.keys) for one in runners]


def validate(executor: Executor) -> list[float]:
    """Validation losses of what is in the slots."""
    found = executor.evaluate([(slot, ROWS[:7]) for slot in SLOTS], 4)
    return [found[slot] for slot in SLOTS]


@pytest.fixture(scope="module")
def on_one_device():
    executor = shared_executor(8, 8)
    return *train(executor), validate(executor)


def crossing(executor: Executor) -> Counter:
    """The collectives of a training step: (kind, shape of the result) -> how many there are in its text."""
    step = executor.programs.get("train", LARGE)
    found = COLLECTIVE.findall(step.as_text())
    return Counter((kind, tuple(int(size) for size in shape.split(",") if size)) for _, shape, kind in found)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_trial_gets_the_same_on_every_mesh(mesh, on_one_device):
    executor = shared_executor(8, 8, mesh)
    losses, snapshots = train(executor)
    np.testing.assert_allclose(losses, on_one_device[0], atol=LOSS_BOUND, rtol=0)
    np.testing.assert_allclose(validate(executor), on_one_device[2], atol=LOSS_BOUND, rtol=0)
    assert difference(snapshots, on_one_device[1]) < ADAPTER_BOUND


def test_a_trial_gets_the_same_on_a_mesh_from_blocks_of_another_kind():
    """Attention beside the MLP behind one norm, layers that do not rotate, bounded scores and logits."""
    shape = {one: getattr(CONFIG, one) for one in ("num_layers", "vocab_size", "num_heads", "num_kv_heads", "head_dim")}
    layers = {"sliding_pattern": (True, False), "rope_pattern": (True, False)}
    config = replace(random_config("cohere2"), **shape, **layers, attention_softcap=0.5, logit_softcap=0.5)
    found = []
    for mesh in (None, {"adapter": 1, "tensor": 2}):
        executor = of_few_shapes(make_executor(1, 8, config=config, mesh=mesh))
        runner, *_ = heterogeneous()
        runner.enter(executor, 0)
        found.append(([tick(executor, [runner]) for _ in range(2)], executor.take(0, runner.rank, runner.keys)))
    (alone, adapter), (spread, other) = found
    np.testing.assert_allclose(spread, alone, atol=LOSS_BOUND, rtol=0)
    assert difference(other, adapter) < ADAPTER_BOUND


def test_what_the_backward_pass_computes_again_changes_nothing_on_a_mesh(on_one_device):
    made = make_executor(8, 8, mesh=MESHES["2x2 and 2 replicas"], remat=Remat("dots", False))
    losses, snapshots = train(of_few_shapes(made))
    np.testing.assert_allclose(losses, on_one_device[0], atol=LOSS_BOUND, rtol=0)
    assert difference(snapshots, on_one_device[1]) < ADAPTER_BOUND


@pytest.mark.parametrize("remat", [SCANNED, IN_PLACE], ids=["scanned", "in place"])
def test_groups_exchange_frozen_weights_and_a_number_a_slot_and_nothing_else(remat):
    scanned = remat == SCANNED
    executor = shared_executor(8, 8, MESHES["8"]) if scanned else make_executor(8, 8, mesh=MESHES["8"], remat=remat)
    found = crossing(executor)
    assert {kind for kind, _ in found} == {"all-gather"}
    frozen = {weight.shape for weight in weights(CONFIG) if len(weight.shape) == 2}
    small = {shape: count for (_, shape), count in found.items() if shape not in frozen}
    assert small == {(8,): 3}, "loss, norm and flag of every slot"


def test_groups_that_hold_the_base_whole_exchange_a_number_a_slot_and_nothing_else():
    found = crossing(make_executor(8, 8, mesh={"adapter": 8, "shard_base": False}))
    assert found == {("all-gather", (8,)): 3}, "loss, norm and flag of every slot"


def test_bytes_moved_do_not_depend_on_the_number_of_adapters():
    few, many = (crossing(shared_executor(slots, 8, MESHES["8"])) for slots in (8, 32))
    few[("all-gather", (8,))] -= 3
    many[("all-gather", (32,))] -= 3
    assert +few == +many


def test_tensor_parallel_blocks_add_up_twice_forward_and_twice_backward():
    found = crossing(shared_executor(8, 8, MESHES["1x8"]))
    rows = (LARGE.rows, LARGE.length, CONFIG.hidden_size)
    sums = sum(count for (kind, shape), count in found.items() if kind == "all-reduce" and shape == rows)
    assert sums == 5, "two ends of two blocks, forward and backward, and the hidden states before the head"


def test_a_layer_computes_without_the_weights_that_are_gathered_beside_it():
    """In the loops over layers, what is gathered is only handed on to the next turn."""
    text = shared_executor(8, 8, MESHES["8"]).programs.get("train", LARGE).as_text()
    loops = [body for body in text.split("\n\n") if body.count(" all-gather(") == 7]
    assert len(loops) == 2, "forward and backward"
    for body in loops:
        assert " dot(" in body or "fusion(" in body
        for name in re.findall(r"(%\S+) = \S+ all-gather\(", body):
            users = [line for line in body.splitlines() if re.search(rf"{re.escape(name)}\b(?! =)", line)]
            kinds = {re.search(r"= .*?\s([a-z-]+)\(", line).group(1) for line in users}
            assert kinds <= {"tuple", "copy", "bitcast"}, f"{name} is used by {kinds}"


def test_the_base_is_never_whole_on_a_device():
    wide = replace(CONFIG, hidden_size=256, intermediate_size=1024, num_heads=8, num_kv_heads=8, head_dim=32)
    needs = {}
    for layers in (4, 12):
        executor = make_executor(8, 8, mesh=MESHES["8"], config=replace(wide, num_layers=layers))
        executor.programs.get("train", Shape(1, 32, 32))
        needs[layers] = executor.programs.stats().done[-1].temp_bytes
    layer = 4 * sum(int(np.prod(one.shape)) for one in weights(wide) if one.layers is not None)
    assert needs[12] - needs[4] < 8 * layer / 2, "a layer more costs its activations and gradients, not its weights"
    assert needs[12] < 8 * layer, "less than the twelve layers, though two are whole at a time"


def test_every_device_holds_its_part_of_the_base_and_the_slots_of_its_group():
    whole, sharding = shared_executor(8, 8), shared_executor(8, 8, MESHES["8"])
    assert sharding.resident_bytes() < whole.resident_bytes() / 8 + 8192  # norms and salts are everywhere
    for leaf in jax.tree.leaves(nnx.state(sharding.model(), LoRA)):
        assert leaf.sharding.shard_shape(leaf.shape)[1] == 1


def test_a_trial_parked_on_one_mesh_resumes_on_another(on_one_device):
    runners = heterogeneous()
    losses = []
    for mesh in ("8", "1x8", "2x2 and 2 replicas"):
        executor = shared_executor(8, 8, MESHES[mesh])
        for runner, slot in zip(runners, reversed(SLOTS), strict=True):
            runner.enter(executor, slot)
        losses += [tick(executor, runners) for _ in range(TICKS // 3)]
        for runner in runners:
            runner.leave(executor)
    np.testing.assert_allclose(losses, on_one_device[0], atol=LOSS_BOUND, rtol=0)
    assert difference([one.snapshot for one in runners], on_one_device[1]) < ADAPTER_BOUND


@pytest.mark.parametrize("mesh", ["8", "2x2 and 2 replicas"])
def test_a_trial_comes_out_of_a_slot_to_the_bit_and_leaves_the_others_alone(mesh):
    executor, runner = shared_executor(8, 8, MESHES[mesh]), make_runner(1, 8, 2)
    runner.snapshot["mu"]["mlp.down_proj"]["b"][...] = np.float32(-0.0)
    neighbour = make_runner(2, 8, 2)
    neighbour.enter(executor, 2)
    executor.put(6, runner.snapshot, HYPER)
    out = executor.take(6, 8, tuple(PROJECTIONS))
    for one, other in zip(jax.tree.leaves(out), jax.tree.leaves(runner.snapshot), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    executor.clear(6)
    assert difference(executor.take(2, 8, neighbour.keys), neighbour.snapshot) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(executor.take(6, 8, tuple(PROJECTIONS))))


def test_trials_are_exchanged_on_a_mesh_without_a_compile(compile_log, caplog):
    executor = shared_executor(8, 8, MESHES["8"])
    first = [make_runner(seed, 4, 4) for seed in range(4)]
    for slot, runner in enumerate(first):
        runner.enter(executor, 2 * slot)
    tick(executor, first)
    first[3].leave(executor)
    steps = len(executor.programs.stats().done)
    caplog.clear()
    first[1].leave(executor)
    other = make_runner(9, 8, 4, dropout=0.2)
    other.enter(executor, 7)
    for _ in range(2):
        tick(executor, [first[0], first[2], other])
    assert len(executor.programs.stats().done) == steps and compile_log() == []
