from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.routing import LoRA
from altojax.estimates.memory_model import (
    REMATS,
    BaseBytes,
    Slot,
    adapter_parameters,
    base_of,
    base_on_gpu,
    kept_in_layer,
    moved_bytes,
    needed_bytes,
    slot_of,
    slots_that_fit,
)
from altojax.estimates.speed_model import (
    OURS,
    WAYS,
    AdapterLoad,
    ClusterModel,
    adapter_parallel,
    best,
    best_in_groups,
    flops_of,
    fsdp_of_one,
    overlapped,
    pipeline_parallel,
    tensor_parallel,
)
from jaxlm.devices.machine import MARGIN
from jaxlm.families.names import projections
from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.models.transformer import Transformer

CONFIG = replace(random_config("llama"), num_layers=8, hidden_size=1024, intermediate_size=4096, num_heads=16)
ALL = tuple(projections(CONFIG))
JOB = AdapterLoad(CONFIG, 16, ALL, 4, 512, 60)
GB = 10**9
CLUSTER = ClusterModel(
    peak=1e15,
    mfu=0.5,
    half_tokens=100,
    memory_bytes=80 * GB,
    head_bytes=GB,
    node=8,
    within=4.5e11,
    across=5e10,
    hidden=0.25,
)
GPUS = st.integers(1, 4096)
BYTES = st.integers(1, 10**12)
BASES = st.builds(BaseBytes, st.lists(BYTES, min_size=1, max_size=100).map(tuple), BYTES, BYTES)
SLOTS = st.builds(Slot, BYTES, BYTES, BYTES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_and_an_adapter_are_as_large_as_the_arrays_of_a_real_model(family):
    config = random_config(family)
    keys = list(projections(config))[1:]
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert base_of(config, weight_bytes=4).total == size
    adapt(model, {key: projections(config)[key] for key in keys}, slots=3, rank=4)
    held = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, LoRA)))
    assert 3 * adapter_parameters(config, 4, keys) == held


@given(BASES, GPUS)
def test_more_gpus_never_leave_more_of_the_base_on_each(base, gpus):
    assert base_on_gpu(base, 1) == base.total
    assert base.total / (gpus + 1) <= base_on_gpu(base, gpus + 1) <= base_on_gpu(base, gpus)


@given(BASES, SLOTS, BYTES, BYTES, GPUS, GPUS, BYTES)
def test_more_gpus_and_more_memory_never_lower_the_slots(base, slot, head, memory, gpus, more_gpus, more_memory):
    fit = slots_that_fit(memory, base_on_gpu(base, gpus), slot, head)
    assert slots_that_fit(memory, base_on_gpu(base, gpus + more_gpus), slot, head) >= fit
    assert slots_that_fit(memory + more_memory, base_on_gpu(base, gpus), slot, head) >= fit


@given(BYTES, BYTES, SLOTS, BYTES)
def test_the_slots_that_fit_do_and_one_more_does_not(memory, base_bytes, slot, head):
    fit, usable = slots_that_fit(memory, base_bytes, slot, head), int(memory * (1 - MARGIN))
    assert fit == 0 or needed_bytes(base_bytes, slot, fit, head) <= usable
    assert needed_bytes(base_bytes, slot, fit + 1, head) > usable


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(REMATS))
def test_what_a_gpu_receives_does_not_depend_on_how_many_adapters_it_trains(few, many, remat):
    moved = {
        plan.moved
        for trials in (few, many)
        if (plan := adapter_parallel(replace(JOB, trials=trials), CLUSTER, 8, remat)) is not None
    }
    assert moved == {moved_bytes(base_of(CONFIG).total, 8)} == {int(2 * 7 / 8 * base_of(CONFIG).total)}


def test_one_gpu_receives_nothing():
    assert moved_bytes(123, 1) == 0


def test_where_computing_takes_no_time_a_step_takes_what_its_bytes_take():
    plan = adapter_parallel(JOB, replace(CLUSTER, peak=1e40), 8, "none")
    assert plan is not None
    assert plan.step_s == pytest.approx(plan.moved / CLUSTER.within, rel=1e-9)


@pytest.mark.parametrize("hidden", [0.25, 1.0])
def test_where_computing_takes_long_the_first_gathers_are_seen_and_of_others_what_is_not_hidden(hidden):
    base = base_of(CONFIG)
    plan = adapter_parallel(JOB, replace(CLUSTER, peak=1e10, hidden=hidden), 8, "none")
    assert plan is not None
    first = (base.embedding + base.layers[0]) * 7 / 8
    seen = first + (1 - hidden) * (plan.moved - first)
    assert plan.step_s - plan.compute_s == pytest.approx(seen / CLUSTER.within, rel=1e-2)


def test_a_gather_is_hidden_by_the_stage_before_it_and_by_no_other():
    assert overlapped([(1, 10), (4, 1), (5, 2)], 1.0) == 1 + max(10, 4) + max(1, 5) + 2


def test_computing_beside_a_gather_hides_a_share_of_it_and_no_more():
    assert overlapped([(1, 10), (4, 1), (8, 0), (2, 0)], 0.25) == 1 + (10 + 3) + 8 + 2
    assert overlapped([(1, 10), (4, 2)], 0.0) == 1 + 10 + 4 + 2


def test_a_frozen_base_costs_four_operations_a_weight_and_six_if_all_is_computed_again():
    alone = replace(JOB, rank=0, length=0)
    weights = sum(one.in_features * one.out_features for one in projections(CONFIG).values())
    head = CONFIG.vocab_size * CONFIG.hidden_size
    for remat, times in (("none", 4), ("dots", 4), ("full", 6)):
        assert flops_of(alone, remat).total(8) == times * 8 * weights + 4 * head


def test_less_is_kept_the_more_is_computed_again_and_the_fewer_projections_are_adapted():
    for family in FAMILIES:
        config = random_config(family)
        keys = tuple(projections(config))
        none, dots, full = (kept_in_layer(config, 16, keys, remat) for remat in REMATS)
        assert none > dots > full
        assert kept_in_layer(config, 16, keys[:1], "none") < none


def test_gradients_of_an_adapter_need_room_where_a_batch_is_too_small_to_free_it():
    adapter = 4 * adapter_parameters(CONFIG, 512, ALL)
    assert slot_of(CONFIG, 512, ALL, "full", tokens=1).kept == adapter
    assert slot_of(CONFIG, 512, ALL, "full", tokens=10**6).kept > adapter


def test_a_pipeline_waits_as_long_as_its_bubble_says():
    exact = replace(CLUSTER, half_tokens=0.0)
    for rows, gpus in ((1, 4), (4, 4), (16, 8)):
        plan = pipeline_parallel(replace(JOB, rows=rows), exact, gpus, "full", most=1)
        assert plan is not None
        assert 1 - plan.compute_s / plan.step_s == pytest.approx((gpus - 1) / (rows + gpus - 1))


def test_tensor_parallelism_moves_four_sums_a_layer_and_six_if_all_is_computed_again():
    for remat, sums in (("none", 4), ("full", 6)):
        plan = tensor_parallel(JOB, CLUSTER, 4, remat, most=2)
        assert plan is not None and plan.adapters == 2
        assert plan.moved == sums * 8 * 2 * 3 / 4 * (2 * 4 * 512) * 1024 * 2
    assert tensor_parallel(JOB, CLUSTER, 3, "none", most=2) is None  # 16 heads


def test_gpus_without_a_row_of_the_only_adapter_add_nothing():
    eight, four = (fsdp_of_one(JOB, replace(CLUSTER, within=1e30), gpus, "none") for gpus in (8, 4))
    assert eight is not None and four is not None
    assert eight.tokens_per_s == pytest.approx(four.tokens_per_s)


def test_across_nodes_a_byte_enters_each_node_once():
    assert CLUSTER.bandwidth(8) == 4.5e11
    assert CLUSTER.bandwidth(16) == 8 * 5e10
    assert replace(CLUSTER, node=1).bandwidth(2) == 5e10


def test_causal_attention_costs_seven_operations_a_query_and_key_and_two_if_made_again():
    none, dots = (
        flops_of(JOB, remat).total(8) - flops_of(replace(JOB, length=0), remat).total(8) for remat in ("none", "dots")
    )
    assert none == 8 * 512 * CONFIG.q_width * 7
    assert dots == 8 * 512 * CONFIG.q_width * 9


def test_two_layers_and_one_table_are_whole_at_a_time():
    assert BaseBytes((5, 7, 6), embedding=4, head=3).gathered == 7 + 6 + 4
    assert base_on_gpu(BaseBytes((50, 50, 50, 50), embedding=4, head=4), 8) == 26 + 50 + 50 + 4


def test_a_slot_holds_three_copies_of_its_adapter_and_one_layer_that_is_computed_again():
    none, full = (slot_of(CONFIG, 16, ALL, remat, tokens=1000) for remat in ("none", "full"))
    assert none.states == full.states == 12 * adapter_parameters(CONFIG, 16, ALL)
    packed = [slot_of(CONFIG, 16, ALL, "full", 1000, 1, kind).states for kind in ("float32", "bfloat16", "int8")]
    assert packed == [each * adapter_parameters(CONFIG, 16, ALL) for each in (16, 12, 10.125)]
    whole, kept = (1000 * kept_in_layer(CONFIG, 16, ALL, remat) for remat in ("none", "full"))
    assert none.working == whole and full.working == whole + whole - kept
    assert none.kept - full.kept == 8 * (whole - kept)


@pytest.mark.parametrize("way", WAYS)
def test_groups_without_a_trial_add_nothing(way):
    one = best(way, replace(JOB, trials=1), CLUSTER, 1)
    found = best_in_groups(way, replace(JOB, trials=5), replace(CLUSTER, within=1.0, across=1.0), 7)
    assert one is not None and found is not None
    if not way.startswith("pipeline"):  # whose traffic is not charged
        assert found == (pytest.approx(5 * one.tokens_per_s), 1)
    assert found[0] <= 7 * best(OURS, replace(JOB, trials=10**4), CLUSTER, 1).tokens_per_s


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_are_one_on_one_gpu_with_one_adapter(way):
    plans = {best(name, replace(JOB, trials=1), CLUSTER, 1).step_s for name in (way, OURS)}
    assert max(plans) == pytest.approx(min(plans))
