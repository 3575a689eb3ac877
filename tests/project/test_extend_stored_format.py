"""A base in the format that docs/extend/stored-format.md shows is trained on as the matrices that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter
from flax import nnx
from how_tos import shown
from safetensors.numpy import load_file
from tiny import CONFIG, PROJECTIONS, ROWS, TINY_ROWS, difference, make_runner, tick

from altojax.adapters.merge import merge
from altojax.device.executor import Executor, StaticPlan
from altojax.estimates.memory_model import base_of
from jaxlm.devices.frozen_weight import all_dense
from jaxlm.devices.mesh import make_layout
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model
from jaxlm.models.functional import weights_by_path
from jaxlm.models.generate import generate
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import forms_of

pytestmark = pytest.mark.slow

LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5
"""As of the solo law: float32 sums in another order."""
FORMAT = shown("stored-format.md")
TOKENS = np.random.default_rng(0).integers(3, 64, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    save_model(tmp_path_factory.mktemp("base") / "m", CONFIG, model, dtype=jnp.bfloat16)
    return tmp_path_factory.getbasetemp() / "base0" / "m"


def load(folder, layout=None, **options):
    placement = None if layout is None else layout.placement
    return load_model(folder, dtype=jnp.float32, pack=FORMAT.int8_columns, placement=placement, **options)[1]


def stood_for(model: Transformer) -> Transformer:
    """A model whose matrices are arrays."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, all_dense(state, jnp.float32))


def run(model, layout=None):
    """Losses of two trials, their evaluations and their adapters."""
    plan = StaticPlan(2, 4, PROJECTIONS, TINY_ROWS, accumulates=True, drops=True, averages=(8.0,))
    runners = [make_runner(1, 4, 2, dropout=0.1), make_runner(2, 3, 1, keys=("self_attn.q_proj", "mlp.down_proj"))]
    with Executor(model, plan, layout=layout) as executor:
        for slot, runner in enumerate(runners):
            runner.enter(executor, slot)
        losses = [tick(executor, runners) for _ in range(4)]
        found = executor.evaluate([(0, ROWS[:5]), (1, ROWS[:5])], 5)
        return losses, list(found.values()), [executor.take(slot, 3, ("self_attn.q_proj",)) for slot in (0, 1)]


def check_same(one, other):
    assert np.abs(np.subtract(one[0], other[0])).max() <= LOSS_BOUND
    assert np.abs(np.subtract(one[1], other[1])).max() <= LOSS_BOUND
    assert difference([each["adapters"] for each in one[2]], [each["adapters"] for each in other[2]]) <= ADAPTER_BOUND


@pytest.fixture(scope="module")
def on_one_device(folder):
    return run(load(folder))


def test_matrices_are_kept_packed_and_counted_by_their_bytes(folder):
    packed, plain = load(folder), load_model(folder, dtype=jnp.float32)[1]
    kernel = packed.layers.mlp.up_proj.kernel.get_value()
    assert isinstance(kernel, FORMAT.Int8Columns) and kernel.values.dtype == jnp.int8
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(packed)))
    assert held == base_of(CONFIG, 4, forms_of(CONFIG, FORMAT.int8_columns)).total
    assert held < 0.5 * base_of(CONFIG, 4).total
    made, given = weights_by_path(packed, jnp.float32), weights_by_path(plain, jnp.float32)
    for path, value in given.items():
        step = jnp.max(jnp.abs(value), axis=-2, keepdims=True) / 127 if path.endswith("kernel") else 0
        off = jnp.abs(made[path] - value)
        assert bool(jnp.all(off <= 0.501 * step)) and bool(jnp.any(off > 0)) == path.endswith("kernel"), path


def test_a_trial_trains_and_is_evaluated_as_on_the_matrices_it_stands_for(folder, on_one_device):
    check_same(on_one_device, run(stood_for(load(folder))))


def test_devices_that_share_the_packed_base_do_the_same(folder, on_one_device):
    layout = make_layout({"adapter": 2, "tensor": 2}, CONFIG)
    model = load(folder, layout)
    for leaf in jax.tree.leaves(model.layers.mlp.down_proj.kernel.get_value()):
        parts = 4 if leaf.shape[-2] > 1 else 2
        assert parts * leaf.addressable_shards[0].data.size == leaf.size
    check_same(run(model, layout), on_one_device)


def test_what_the_backward_pass_keeps_holds_no_dense_stack(folder):
    model = load(folder)
    dense = {one.shape for one in jax.tree.leaves(nnx.state(stood_for(model).layers)) if one.ndim == 3}
    kept = kept_shapes(model)
    assert kept and not kept & dense
    assert kept_shapes(stood_for(model)) & dense


def kept_shapes(model):
    """Shapes of the float arrays that the layers keep for their backward pass."""
    places = model.places(jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32)[None], TOKENS.shape), None)
    x = model.embed(jnp.asarray(TOKENS), places.positions)
    _, pull = jax.vjp(lambda x: model.run_layers(x, places)[0], x)
    return {leaf.shape for leaf in jax.tree.leaves(pull) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def test_text_is_generated_as_by_the_matrices_it_stands_for(folder):
    model = load(folder)
    lengths = np.array([12, 9])
    made, wanted = (generate(one, TOKENS, lengths, max_new_tokens=6) for one in (model, stood_for(model)))
    np.testing.assert_array_equal(made, wanted)


def test_a_merged_adapter_is_dense_and_exact(folder, tmp_path):
    model = load(folder)
    spec, adapter = random_adapter(CONFIG, ["q_proj"])
    wanted = stood_for(load(folder))
    for one in (model, wanted):
        merge(one, spec, adapter)
    np.testing.assert_allclose(logits_of(model, TOKENS), logits_of(wanted, TOKENS), atol=2e-5)
    save_model(tmp_path / "merged", CONFIG, model, dtype=jnp.float32)
    written = load_file(tmp_path / "merged" / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(written.T, wanted.layers.self_attn.q_proj.kernel.get_value()[1])


def test_random_weights_are_packed_too(folder):
    model = load(folder, random_init=True)
    drawn = load_model(folder, dtype=jnp.float32, random_init=True)[1].layers.mlp.up_proj.kernel.get_value()
    np.testing.assert_array_equal(model.layers.mlp.up_proj.kernel.get_value().values, FORMAT.int8_columns(drawn).values)
