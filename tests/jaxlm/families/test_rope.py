"""Rotations: every published scaling has transformers' frequencies, whatever the length of a text."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.families.rope import rope_angles
from jaxlm.files.hf_config import from_hf, to_hf

SIZES = {
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
LISTS = {"short_factor": [1.0 + 0.1 * i for i in range(16)], "long_factor": [1.0 + 2.5 * i for i in range(16)]}
LONGROPE = {"type": "longrope", "original_max_position_embeddings": 1024, **LISTS}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
CASES = {
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, (10,)),
    "llama3": (
        "llama",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        (10,),
    ),
    "dynamic": ("qwen2", {"type": "dynamic", "factor": 2.5}, (10, 4096, 4097, 9000)),
    "yarn": ("qwen3", {**YARN, "rope_theta": 1e6}, (10, 4000)),
    "yarn, its context left out": ("llama", {"rope_type": "yarn", "factor": 4.0}, (10,)),
    "yarn, its factor null": ("llama", {**YARN, "factor": None}, (10,)),
    "yarn, mscale": ("mistral", {**YARN, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 0.8}, (10,)),
    "yarn, one mscale alone": ("mistral", {**YARN, "mscale": 1.0}, (10,)),
    "yarn, everything": (
        "llama",
        {**YARN, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        (10,),
    ),
    "longrope": ("llama", LONGROPE, (10, 1024, 1025)),
    "longrope, a factor": ("qwen2", {**LONGROPE, "factor": 32.0}, (10, 2000)),
    "longrope, everything": ("mistral", {**LONGROPE, "attention_factor": 1.5, "factor": 8.0}, (1024, 1025)),
}


def config_of(case):
    kind, rope, _ = CASES[case]
    # A config.json of today, and one of before.
    spelling = {"rope_parameters": {"rope_theta": 5e4, **rope}} if "rope_type" in rope else {"rope_scaling": rope}
    head = {"head_dim": 32} if kind in ("qwen3", "mistral") else {}
    return {"model_type": kind, **SIZES, **head, **spelling}


@pytest.fixture(scope="module")
def expected(reference, tmp_path_factory):
    """transformers' frequencies and attention factor, by case and length."""
    folder = tmp_path_factory.mktemp("rope")
    asked = [(case, length) for case, (_, _, lengths) in CASES.items() for length in lengths]
    jobs = [{"config": config_of(case), "length": length} for case, length in asked]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    reference("rope_frequencies.py", folder / "jobs.json", folder / "out.npz")
    with np.load(folder / "out.npz") as found:
        return {one: found[str(number)] for number, one in enumerate(asked)}


@pytest.mark.parametrize("case", CASES)
def test_frequencies_and_attention_factors_are_transformers(expected, case):
    config = from_hf(config_of(case))
    assert from_hf(to_hf(config)) == config
    lengths = CASES[case][2]
    column = jnp.asarray(lengths, jnp.int32)[:, None]
    cos, sin = map(np.asarray, rope_angles(config.rope, config.head_dim, jnp.ones_like(column), column))
    for row, length in enumerate(lengths):
        wanted = expected[case, length]
        np.testing.assert_allclose(np.arctan2(sin[row, 0], cos[row, 0]), wanted[:-1], rtol=1e-6)
        np.testing.assert_allclose(np.hypot(sin[row, 0], cos[row, 0]), wanted[-1], rtol=1e-6)
