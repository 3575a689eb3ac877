"""Configurations as they were released, sizes apart, are read; each file says where it was read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxlm.files.hf_config import from_hf, to_hf

RELEASED = sorted((Path(__file__).parent / "released").glob("*.json"))
IGNORED = {
    "smollm2-135m-instruct": "is_llama_config, rope_interleaved",
    "aya-expanse-8b": "model_max_length",
    "gpt-oss-20b": "experts_per_token, initial_context_length",
    "lfm2-1.2b": "block_mlp_init_scale, block_norm_eps, block_out_init_scale, block_use_swiglu, block_use_xavier_init, "
    "conv_use_xavier_init, num_heads, use_pos_enc",
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
    assert from_hf(to_hf(config)) == replace(config, whole="")
    said = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    ignored = IGNORED.get(path.stem)
    assert said == ([f"note: {path.name}: ignored, as in transformers: {ignored}"] if ignored else [])


def test_what_a_multimodal_configuration_leaves_out_is_as_its_class_has_it():
    read = {path.stem: from_hf(json.loads(path.read_text())["config"]) for path in RELEASED}
    gemma, mistral, qwen = read["gemma-3-4b-it"], read["mistral-small-3.1-24b"], read["qwen2.5-vl-7b-instruct"]
    assert (gemma.whole, gemma.vocab_size, gemma.num_heads, gemma.head_dim) == ("gemma3", 262_208, 8, 256)
    assert (gemma.rope.factor, gemma.eos_ids, gemma.tie_embeddings) == (8.0, (1, 106), True)
    assert (mistral.sliding_window, mistral.tie_embeddings, mistral.norm_eps) == (None, False, 1e-5)
    newer = read["ministral-3-3b-instruct-2512"]
    assert (newer.family, newer.whole, newer.query_growth) == ("ministral3", "mistral3", 0.1)
    assert (newer.rope.attention_factor, newer.sliding_window) == (1.0, None)
    assert (qwen.rope.scaling, qwen.rope.theta, qwen.qkv_bias) == ("default", 1e6, True)
