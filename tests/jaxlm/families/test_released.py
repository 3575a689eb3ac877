"""Configurations as they were released, sizes apart, are read; each file says where it was read."""

import json
from pathlib import Path

import pytest

from jaxlm.files.hf_config import from_hf, to_hf

RELEASED = sorted((Path(__file__).parent / "released").glob("*.json"))
IGNORED = {
    "smollm2-135m-instruct": "is_llama_config, rope_interleaved",
    "aya-expanse-8b": "model_max_length",
    "command-r7b-12-2024": "layer_switch, order_of_interleaved_layers, position_embedding_type, rotary_pct, "
    "use_embedding_sharing, use_gated_activation, use_parallel_block, use_parallel_embedding",
    **{
        f"phi-{name}": "attention_bias"
        for name in ("3-mini-4k-instruct", "3-mini-128k-instruct", "3.5-mini-instruct", "4")
    },
    "phi-4-mini-instruct": "attention_bias, full_attn_mod, interpolate_factor, lm_head_bias, mlp_bias",
}
"""Keys that nobody reads."""


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_a_released_configuration_is_read_and_nothing_of_it_is_ignored_in_silence(path, capsys):
    kept = json.loads(path.read_text())
    assert kept["read"]
    config = from_hf(kept["config"], path.name)
    assert from_hf(to_hf(config)) == config
    said = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    ignored = IGNORED.get(path.stem)
    assert said == ([f"note: {path.name}: ignored, as in transformers: {ignored}"] if ignored else [])
