"""Every family computes what transformers computes, from transformers' own files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import logits

from jaxlm.files.hf_config import from_hf, to_hf
from jaxlm.files.weights import load_model
from jaxlm.models.generate import generate

NAMES = ("llama", "llama-biased", "mistral", "qwen2", "qwen2-sliding", "qwen3", "gemma3", "gpt2")
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_logits_match_transformers(reference_models, name):
    config, model = load_model(reference_models / name, dtype=jnp.float32)
    with np.load(reference_models / f"{name}.npz") as expected:
        tokens, wanted = expected["tokens"], expected["logits"]
    difference = float(np.abs(logits(model, tokens) - wanted).max())
    print(f"{name}: largest difference of logits {difference:.1e}, of {np.abs(wanted).max():.1f}")
    assert difference <= TOLERANCE
    assert config.sliding_window is None or tokens.shape[1] > config.sliding_window


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_greedy_text_matches_transformers(reference_models, name):
    _, model = load_model(reference_models / name, dtype=jnp.float32)
    with np.load(reference_models / f"{name}.npz") as expected:
        greedy = expected["greedy"].astype(np.int32)
    made = generate(model, greedy[:, :12], np.array([12]), max_new_tokens=16)
    np.testing.assert_array_equal(made, greedy[:, 12:])


@pytest.mark.parametrize("name", NAMES)
def test_our_config_json_says_what_transformers_said(reference_models, name):
    theirs = json.loads((reference_models / name / "config.json").read_text())
    config = from_hf(theirs)
    ours = to_hf(config)
    assert from_hf(ours) == config
    assert ours["architectures"] == theirs["architectures"]
    renamed = {"rope_theta", "rope_scaling", "rope_local_base_freq"}
    assert not {key for key in ours.keys() - renamed if theirs.get(key) not in (None, ours[key])}


def test_another_spelling_of_the_same_activation_is_the_same(reference_models):
    raw = json.loads((reference_models / "gpt2" / "config.json").read_text())
    assert from_hf({**raw, "activation_function": "gelu_pytorch_tanh"}) == from_hf(raw)
