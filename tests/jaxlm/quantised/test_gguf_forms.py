"""GGUF's blocks that stay packed are to the bit what the file's numbers are, in about as many bytes."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf
from tiny_models import tiny, variables

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model, read_forms
from jaxlm.models.functional import weights_by_path
from jaxlm.quantised.checkpoints.gguf import KINDS, form_of
from jaxlm.quantised.formats import Keep, bytes_of, names_of

HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Bytes of a block at which a float16 stands."""
BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0, "Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625}
"""Of a number; K's six bits of a scale are kept in eight."""


def rows_of(kind, outputs=24, blocks=16):
    """Random bytes of 512 or 4,096 inputs."""
    random = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[Kind[kind]][1]
    held = random.integers(0, 256, (outputs, blocks, size)).astype(np.uint8)
    for at in HALVES[kind]:
        halves = random.uniform(-0.1, 0.1, (outputs, blocks, 1)).astype(np.float16)
        held[..., at : at + 2] = halves.view(np.uint8)
    return held.reshape(outputs, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_kept_without_loss(kind):
    rows = rows_of(kind)
    form, want = KINDS[kind](rows), gguf.quants.dequantize(rows, Kind[kind]).T
    assert form.name == kind.lower()
    found = jax.jit(lambda one: one.dense(jnp.float32))(jax.tree.map(jnp.asarray, form))
    np.testing.assert_array_equal(found, want)
    assert 8 * bytes_of(form) == BITS[kind] * want.size
    said = form_of(kind, *want.shape, rows.shape[1])
    assert jax.tree.map(lambda one: (one.shape, one.dtype.name), said) == jax.tree.map(
        lambda one: (one.shape, one.dtype.name), form
    )
    stacked = jax.tree.map(lambda one: jnp.asarray(one[None]), form)
    np.testing.assert_array_equal(stacked.dense(jnp.bfloat16)[0], want.astype(jnp.bfloat16))


@pytest.mark.parametrize(("family", "kind"), (("llama", Kind.Q8_0), ("mixtral", Kind.Q4_1)))
def test_a_file_is_kept_packed_only_where_it_is_asked_for(tmp_path, family, kind):
    path, config = tmp_path / "m.gguf", random_config(family)
    save_model(tmp_path / "m", config, tiny(family), dtype=jnp.float32)
    write_gguf(path, tmp_path / "m", config, kind)
    kept, plain = (load_model(path, dtype=jnp.float32, pack=keep)[1] for keep in (Keep.ALL, Keep.RELEASED))
    forms = read_forms(path, Keep.ALL)
    assert names_of(forms) == kind.name.lower() and not read_forms(path, Keep.RELEASED)
    held = nnx.to_flat_state(nnx.state(kept))
    assert {".".join(path) for path, one in held if isinstance(one.get_value(), FrozenWeight)} == set(forms)
    found = weights_by_path(kept, jnp.float32)
    for name, value in variables(plain).items():
        np.testing.assert_array_equal(found[name], value)


def test_layers_of_two_kinds_are_dense_and_named(tmp_path, capsys):
    path, key = tmp_path / "mixed.gguf", "blk.1.ffn_down.weight"
    down = np.asarray(variables(tiny("llama"))["layers.mlp.down_proj.kernel"][1]).T
    raw = {key: (Kind.Q8_0, gguf.quants.quantize(np.ascontiguousarray(down), Kind.Q8_0))}
    save_model(tmp_path / "m", random_config("llama"), tiny("llama"), dtype=jnp.float32)
    write_gguf(path, tmp_path / "m", random_config("llama"), Kind.Q4_0, raw=raw)
    model = load_model(path, dtype=jnp.float32, pack=Keep.ALL)[1]
    assert "layers.mlp.down_proj.kernel is dense" in capsys.readouterr().err
    plain = variables(load_model(path, dtype=jnp.float32)[1])["layers.mlp.down_proj.kernel"]
    np.testing.assert_array_equal(model.layers.mlp.down_proj.kernel.get_value(), plain)
    assert names_of(read_forms(path, Keep.ALL)) == "q4_0"
