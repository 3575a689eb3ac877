"""A base that lies over a mesh is evaluated, prompted and exported as on one device."""

import gc
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import random_adapter
from flax import nnx
from runs import TINY, write_finished_run
from safetensors.numpy import load_file

from altojax import UserError, load
from altojax.cli import main
from altojax.inference import export
from altojax.inference.adapted_model import AdaptedModel
from altojax.inference.loaded_model import load_adapted
from altojax.inference.model_source import find_source
from jaxlm.devices.mesh import make_layout
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models import generate as generation
from jaxlm.models.functional import weights_by_path
from jaxlm.models.sampling import Sampling

pytestmark = pytest.mark.slow

MESH = "{data: 2, adapter: 2, tensor: 2}"
SHARED = "{adapter: 2, tensor: 2}"
"""Both axes by which a base lies over devices; what is loaded on a device is compiled for it."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_finished_run(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def evaluated(run_dir, tmp_path_factory):
    """Evaluates a run's task over a mesh, once each."""
    known = {}

    def evaluate(mesh):
        if mesh not in known:
            out = tmp_path_factory.mktemp("results") / "r.json"
            words = () if mesh is None else (f"mesh={mesh}",)
            asks = ("exact_match=true", "max_new_tokens=6", f"predictions={out.with_suffix('.jsonl')}")
            assert main(["evaluate", str(run_dir), "task=first", f"out={out}", *asks, *words]) == 0
            known[mesh] = json.loads(out.read_text())["results"], out.with_suffix(".jsonl").read_text()
        return known[mesh]

    return evaluate


@pytest.fixture(scope="module")
def base_bytes():
    _, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
    return sum(leaf.nbytes for leaf in weights_by_path(model, jnp.float32).values())


def test_losses_and_answers_over_a_mesh_are_those_of_one_device(evaluated):
    (alone, answers), (found, made) = evaluated(None), evaluated(MESH)
    assert [one["name"] for one in found] == [one["name"] for one in alone] == ["base", "first/best"]
    for one, other in zip(found, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-6)
    assert made == answers


def test_what_is_generated_over_a_mesh_is_what_one_device_makes(run_dir, capsys):
    def said(*words):
        common = ("task=first", "prompt=2 plus 2", "max_new_tokens=8", "temperature=0.9", "samples=3", "top_k=20")
        assert main(["generate", str(run_dir), *common, *words]) == 0
        return capsys.readouterr().out

    assert said(f"mesh={SHARED}") == said()


def test_what_is_merged_over_a_mesh_is_what_one_device_merges(run_dir, tmp_path):
    words = ("export", str(run_dir), "task=first", "kind=merged", "dtype=float32")
    assert (
        main([*words, f"out={tmp_path / 'alone'}"]) == main([*words, f"out={tmp_path / 'mesh'}", f"mesh={SHARED}"]) == 0
    )
    alone, found = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "mesh"))
    assert alone.keys() == found.keys()
    for key, tensor in alone.items():
        np.testing.assert_allclose(found[key], tensor, rtol=1e-6, atol=1e-7)


def test_no_device_of_a_mesh_holds_more_than_its_part_of_the_base(run_dir, base_bytes):
    loaded = load_adapted(find_source(str(run_dir), task="first", adapters=[]), mesh=MeshSpec(data=4, adapter=1))
    weights = weights_by_path(loaded.adapted.model, jnp.float32).values()
    held = [sum(one.addressable_shards[i].data.nbytes for one in weights) for i in range(4)]
    assert max(held) < 0.3 * base_bytes, "a quarter, and norms that are everywhere"


def test_generation_over_a_mesh_gathers_no_weight(run_dir):
    """What devices exchange for a token is activations: a large base stays where it is."""
    loaded = load_adapted(find_source(str(run_dir), task="first"), mesh=MeshSpec(data=4, adapter=1))
    graph, state = nnx.split(loaded.adapted.model)
    tokens = jnp.zeros((2, 8), jnp.int32)
    lengths, ends = jnp.full(2, 8, jnp.int32), jnp.zeros(0, jnp.int32)
    arguments = (state, tokens, lengths, ends, None, loaded.adapted.routing([1, 1]), graph, 4, 0)
    text = generation._generate.lower(*arguments).compile().as_text()
    assert " all-reduce(" in text
    gathered = [
        math.prod(map(int, found.split(","))) for found in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    ]
    assert all(size < loaded.config.hidden_size * loaded.config.kv_width for size in gathered), gathered


def test_a_merge_holds_the_base_once(run_dir, tmp_path, monkeypatch, base_bytes):
    def bytes_held() -> int:
        gc.collect()  # which tests do rarely
        return sum(one.nbytes for one in jax.live_arrays())

    before, held = bytes_held(), []
    compare = export._compare

    def watched(*arguments):
        held.append(bytes_held() - before)
        compare(*arguments)

    monkeypatch.setattr(export, "_compare", watched)
    assert main(["export", str(run_dir), "task=first", "kind=merged", f"out={tmp_path / 'merged'}"]) == 0
    assert len(held) == 2 and max(held) < 1.5 * base_bytes, [one / base_bytes for one in held]


def test_slots_are_made_up_to_a_multiple_of_the_groups():
    config = read_model_config(TINY, weights=False)
    pairs = [random_adapter(config, ["q_proj"], seed=seed) for seed in (1, 2)]
    layout = make_layout({"adapter": 2}, config)
    _, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0, placement=layout.placement)
    adapted = AdaptedModel(model, pairs, layout=layout)
    assert adapted.slots == 3
    prompts = [np.arange(5, dtype=np.int32), np.arange(7, dtype=np.int32)]
    made = adapted.complete(prompts, 2, Sampling(max_new_tokens=3), eos_ids=())
    assert [len(one) for one in made] == [3, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "mesh={data: 16}"), "16 devices, expected at most 8"),
        (("generate", "prompt=a", "mesh={tensor: 3}"), "mesh.tensor: given 3, expected a power of two"),
        (("generate", "prompt=a", "mesh={tp: 2}"), "tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(run_dir, capsys, words, said):
    verb, *rest = words
    assert main([verb, str(run_dir), "task=first", *rest]) == 2
    assert said in capsys.readouterr().err


def test_python_takes_a_mesh_too(run_dir):
    alone, spread = load(run_dir, task="first"), load(run_dir, task="first", mesh={"data": 2, "adapter": 1})
    assert spread.loss() == pytest.approx(alone.loss(), rel=2e-6)
    with pytest.raises(UserError, match="mesh"):
        load(run_dir, task="first", mesh={"dat": 2})
