"""The mesh of a run whose config names none, and its cost to each device."""

import re
from dataclasses import replace
from math import prod

import jax
import pytest
from tiny import CONFIG, make_executor

from altojax.device import auto_mesh
from altojax.device.auto_mesh import HELD, choose_layout, layout_for_use, received_bytes, weight_bytes
from altojax.device.batch_shapes import Shape
from altojax.estimates.memory_model import base_of
from jaxlm.devices.mesh import make_layout
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.registry import random_config
from jaxlm.quantised.formats import PACKS, forms_of
from jaxrun.process.errors import UserError

PLENTY = 2**40
WIDE = random_config("llama")


@pytest.fixture
def accelerators(monkeypatch):
    """Eight devices that are no simulated ones."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def chosen(model, trials, budget=PLENTY, spec=None):
    layout = choose_layout(spec, model, trials, "bfloat16", budget)
    return None if layout is None else (layout.groups, layout.tensor, layout.replicas)


def test_simulated_devices_are_used_only_where_a_config_asks_for_them():
    assert chosen(CONFIG, 60) is None
    assert chosen(CONFIG, 60, spec=MeshSpec(tensor=2)) == (4, 2, 1)
    assert chosen(CONFIG, 60, spec=MeshSpec(adapter=1)) is None, "one device needs no mesh"


def test_every_device_takes_slots_of_its_own_as_far_as_there_are_trials(accelerators):
    assert chosen(CONFIG, 60) == (8, 1, 1)
    assert chosen(CONFIG, 4) == (4, 2, 1)
    assert chosen(CONFIG, 2) == (2, 4, 1)


def test_a_base_too_large_for_a_device_shares_out_its_layers_too(accelerators):
    base = base_of(CONFIG)
    alone = weight_bytes(make_layout({"adapter": 8}, CONFIG), base)
    assert weight_bytes(make_layout({"adapter": 4, "tensor": 2}, CONFIG), base) < alone
    assert chosen(CONFIG, 60, budget=2 * alone) == (8, 1, 1)
    assert chosen(CONFIG, 60, budget=int(1.6 * alone)) == (4, 2, 1)
    assert chosen(CONFIG, 60, budget=1) == (1, 8, 1), "memory_budget says in one line what is missing"


def test_a_base_is_sharded_only_where_it_is_large_for_a_device_or_a_config_says_so(accelerators):
    def shards(budget, **spec):
        return choose_layout(MeshSpec(**spec) if spec else None, CONFIG, 60, "bfloat16", budget).shards_base

    total = base_of(CONFIG).total
    assert not shards(4 * total) and shards(3 * total)
    assert not shards(8 * total, tensor=2) and not shards(2 * total, tensor=4)
    assert shards(PLENTY, shard_base=True) and not shards(1, shard_base=False)
    whole = make_layout({"adapter": 8, "shard_base": False}, CONFIG)
    assert weight_bytes(whole, base_of(CONFIG)) == total and received_bytes(whole, base_of(CONFIG)) == 0


def test_heads_bound_what_devices_share_out(accelerators):
    assert WIDE.num_kv_heads == 2
    assert chosen(WIDE, 1) == (1, 2, 1), "the other devices would have nothing to do"


def test_a_base_to_use_is_spread_only_where_one_accelerator_does_not_hold_it(accelerators, monkeypatch):
    deep = replace(WIDE, num_layers=64)
    total = base_of(deep).total

    def used(budget, spec=None):
        monkeypatch.setattr(auto_mesh, "device_budget", lambda: int(budget))
        return layout_for_use(spec, deep, "bfloat16")

    assert used(total / HELD + 1) is None
    spread = used(total / HELD - 1)
    assert spread is not None and (spread.groups, spread.tensor, spread.replicas) == (1, 1, 8) and spread.shards_base
    asked = used(PLENTY, MeshSpec(tensor=2))
    assert asked is not None and (asked.groups, asked.tensor) == (4, 2)
    with pytest.raises(UserError, match=r"of which each of 8 devices would hold .* at a time, expected at most the"):
        used(total / 32)


def test_devices_that_no_config_names_share_no_block_of_a_packed_base(accelerators, monkeypatch):
    model = replace(CONFIG, hidden_size=192, num_heads=8, num_kv_heads=8, head_dim=24, intermediate_size=192)
    forms = forms_of(model, PACKS["nf4"])
    assert chosen(model, 4) == (4, 2, 1)
    layout = choose_layout(None, model, 4, "bfloat16", 1, forms)
    assert (layout.groups, layout.tensor, layout.shards_base) == (4, 1, False), "192 inputs are three blocks"
    base = base_of(model, 2, forms)
    monkeypatch.setattr(auto_mesh, "device_budget", lambda: base.total)
    assert layout_for_use(None, model, "bfloat16", forms).replicas == 3


def test_a_cpu_is_never_spread_over_by_itself(monkeypatch):
    monkeypatch.setattr(auto_mesh, "device_budget", lambda: 1)
    assert layout_for_use(None, WIDE, "float32") is None, "its devices share one memory"


def test_bytes_that_a_step_brings_are_those_of_the_compiled_program():
    executor = make_executor(8, 8, mesh={"adapter": 8})
    text = executor.programs.get("train", Shape(4, 32, 64)).as_text()
    brought = 0
    for function in text.split("\n\n"):
        shapes = re.findall(r"= f32\[(\d+),(\d+)\]\S* all-gather\(", function)
        turns = 1 if function.startswith("ENTRY") or "\nENTRY" in function else CONFIG.num_layers
        brought += turns * sum(4 * prod(map(int, shape)) for shape in shapes) * 7 // 8
    base = base_of(CONFIG, 4)
    predicted = received_bytes(executor.sharding.layout, base)
    norms = 5 * 4 * 2 * CONFIG.hidden_size  # which are everywhere
    assert predicted - norms <= brought <= predicted
