"""Every family computes what transformers computes, from transformers' own files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_models import logits

from jaxlm.families.names import weights
from jaxlm.files.hf import save_model
from jaxlm.files.hf_config import from_hf, to_hf
from jaxlm.files.weights import load_model
from jaxlm.models.generate import generate
from jaxlm.models.head import target_nll

OF_THEIR_OWN = ("smollm3", "granite", "olmo3", "gemma2", "cohere2", "gpt_oss", "glm4", "gemma4", "lfm2")
"""Between them every computation that Llama, Gemma 3 and GPT-2 do not have."""
NAMES = (
    *("llama", "llama-biased", "mistral", "qwen2", "qwen2-sliding", "qwen3", "gemma3", "gpt2", "phi3"),
    *(
        "smollm3-sliding",
        "olmo2",
        "gemma3-capped",
        "gemma4-values",
        "cohere",
        "exaone4",
        "exaone4-full",
        "ministral",
        "ministral3",
        "qwen3_moe",
        "qwen3_moe-unnormed",
        "mixtral",
        "gpt_oss-mxfp4",
        "glm",
        "seed_oss",
        "lfm2-biased",
        *OF_THEIR_OWN,
    ),
)
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


def loss(model, tokens):
    hidden, targets = model(tokens)[:, :-1], tokens[:, 1:].reshape(-1)
    options = {"chunk": len(targets), "softcap": model.config.logit_softcap}
    return jnp.mean(target_nll(hidden.reshape(len(targets), -1), model.head_kernel(), targets, **options))


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_gradients_match_transformers(reference_models, name):
    """Of whole weights, of which an adapter's are products."""
    config, model = load_model(reference_models / name, dtype=jnp.float32)
    graph, state = nnx.split(model)
    with np.load(reference_models / f"{name}.npz") as expected:
        wanted, tokens = dict(expected), expected["tokens"].astype(np.int32)
    slopes = jax.jit(jax.grad(lambda state: loss(nnx.merge(graph, state), tokens)))(state)
    ours = {".".join(map(str, path)): one.get_value() for path, one in nnx.to_flat_state(slopes)}
    compared = [weight for weight in weights(config) if weight.keys(weight.entries[0])[0] in wanted]
    each = 2 if config.routed else 3  # what trains in a mixture is outside of its experts
    assert len(compared) == each * len(config.stacks)
    for weight in compared:
        theirs = np.stack([wanted[weight.keys(layer)[0]].T for layer in weight.entries])
        np.testing.assert_allclose(ours[weight.path], theirs, rtol=0, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))


def test_a_text_within_its_first_context_has_transformers_logits_too(reference_models):
    config, model = load_model(reference_models / "phi3", dtype=jnp.float32)
    with np.load(reference_models / "phi3.npz") as expected:
        tokens, wanted, long = expected["tokens"][:, :12], expected["short"], expected["logits"][:, :12]
    assert np.abs(logits(model, tokens) - wanted).max() <= TOLERANCE
    assert tokens.shape[1] <= config.rope.original_max_position and np.abs(wanted - long).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gemma2", "cohere2", "gpt_oss", "gemma4", "lfm2"])
def test_greedy_text_matches_transformers(reference_models, name):
    _, model = load_model(reference_models / name, dtype=jnp.float32)
    with np.load(reference_models / f"{name}.npz") as expected:
        greedy = expected["greedy"].astype(np.int32)
    made = generate(model, greedy[:, :12], np.array([12]), max_new_tokens=16)
    np.testing.assert_array_equal(made, greedy[:, 12:])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt_oss-mxfp4"])
def test_what_we_save_are_the_tensors_that_transformers_saved(reference_models, name, tmp_path):
    config, model = load_model(reference_models / name, dtype=jnp.float32)
    save_model(tmp_path / name, config, model, dtype=jnp.float32)
    ours, theirs = (
        {key: tensor for file in (folder / name).glob("*.safetensors") for key, tensor in load_file(file).items()}
        for folder in (tmp_path, reference_models)
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor, key)


@pytest.mark.parametrize("name", NAMES)
def test_our_config_json_says_what_transformers_said(reference_models, name):
    theirs = json.loads((reference_models / name / "config.json").read_text())
    config = from_hf(theirs)
    ours = to_hf(config)
    assert from_hf(ours) == config
    assert ours["architectures"] == theirs["architectures"]
    otherwise = {"rope_theta", "rope_scaling", "rope_local_base_freq", "rope_parameters"}
    otherwise |= {"intermediate_size", "block_ff_dim", "block_auto_adjust_ff_dim"} if name == "lfm2" else set()
    assert not {key for key in ours.keys() - otherwise if theirs.get(key) not in (None, ours[key])}


def test_another_spelling_of_the_same_activation_is_the_same(reference_models):
    raw = json.loads((reference_models / "gpt2" / "config.json").read_text())
    assert from_hf({**raw, "activation_function": "gelu_pytorch_tanh"}) == from_hf(raw)
