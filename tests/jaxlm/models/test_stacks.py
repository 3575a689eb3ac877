"""Models whose ends are wider: the same computation, layer by layer, as one stack of one shape."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import UNLIKE, four_layers, unlike_families
from flax import nnx

from jaxlm.families.config import wide_ends
from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.files.hf import write_weights
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.generate import generate
from jaxlm.models.transformer import Transformer

pytestmark = pytest.mark.slow

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 12)), jnp.int32)


@cache
def pair(family):
    """A plain model of four layers, and the same with its ends in stacks of their own: configs and weights."""
    plain = four_layers(family)
    ends = wide_ends(plain, 1, 2, num_heads=plain.num_heads)
    model = Transformer(plain, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    whole = weights_by_path(model, jnp.float32)
    apart = {}
    for path, value in whole.items():
        if not path.startswith("layers."):
            apart[path] = value
            continue
        for stack, part in (("first_", value[:1]), ("", value[1:2]), ("last_", value[2:])):
            apart[stack + path] = part
    return (plain, whole), (ends, apart)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        *((family, {}) for family in UNLIKE),
        *(("gemma3", kinds) for kinds in ({"scan_layers": False, "remat": "full"}, {"remat": "dots"})),
    ],
    ids=str,
)
def test_stacks_one_after_the_other_are_the_model_in_one_stack(family, kinds):
    def computed(config, values):
        return jax.jit(lambda values: Functional(config, **kinds).bind(values)(TOKENS))(values)

    found = [computed(config, values) for config, values in pair(family)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@unlike_families
def test_generation_keeps_keys_and_values_of_every_stack(family):
    lengths = np.array([12, 12])
    made = [
        generate(Functional(config).bind(values), TOKENS, lengths, max_new_tokens=6) for config, values in pair(family)
    ]
    np.testing.assert_array_equal(made[0], made[1])


@unlike_families
def test_files_of_both_are_the_same(family, tmp_path):
    (plain, whole), (wide, apart) = pair(family)
    folders = [tmp_path / "plain", tmp_path / "wide"]
    for folder in folders:
        folder.mkdir()
    write_weights(folders[0], plain, whole, dtype=jnp.float32)
    write_weights(folders[1], wide, apart, dtype=jnp.float32, settings={})
    files = [folder / "model.safetensors" for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {weight.path for weight in weights(wide)} == set(apart)


def test_narrow_layers_between_wide_ends_compute_and_differentiate():
    config = replace(random_config("llama"), num_heads=2, num_kv_heads=1, intermediate_size=32, num_layers=4)
    config = wide_ends(config, 1, 1, num_heads=4, num_kv_heads=2, intermediate_size=96)
    model = Functional(config)
    values = {path: jnp.full(shape, 0.01, jnp.float32) for path, shape in model.shapes.items()}
    assert model.shapes["layers.mlp.up_proj.kernel"] == (2, 64, 32)
    assert model.shapes["last_layers.mlp.up_proj.kernel"] == (1, 64, 96)
    slopes = jax.jit(jax.grad(lambda values: jnp.sum(model.bind(values)(TOKENS))))(values)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes.values())


def test_wide_ends_leave_a_layer_between():
    with pytest.raises(ValueError, match=r"layers \[0\] of 1 are of other shapes"):
        wide_ends(replace(random_config("llama"), num_layers=1), 1, 0, num_heads=4)
