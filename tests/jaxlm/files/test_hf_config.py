"""config.json is read as transformers means it, and never half understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.families.rope import RopeConfig
from jaxlm.files.hf_config import from_hf, to_hf
from jaxrun.process.errors import UserError

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GPT2 = {"model_type": "gpt2", "hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None}
GPT2 |= {"intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 1, "n_head": 4}


def config(kind, **settings):
    return from_hf({"model_type": kind, **SMALL, **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_the_round_trip(family):
    assert from_hf(to_hf(random_config(family))) == random_config(family)


rope_settings = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": st.sampled_from([2.0, 8.0])}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.sampled_from([8.0, 32.0]),
            "low_freq_factor": st.just(1.0),
            "high_freq_factor": st.just(4.0),
            "original_max_position_embeddings": st.sampled_from([64, 8192]),
        }
    ),
)


@given(
    kind=st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]),
    rope=rope_settings,
    theta=st.sampled_from([1e4, 5e5]),
    new_spelling=st.booleans(),
    rest=st.fixed_dictionaries(
        {"num_key_value_heads": st.sampled_from([1, 2, 4])},
        optional={
            "tie_word_embeddings": st.booleans(),
            "head_dim": st.sampled_from([8, 32]),
            "sliding_window": st.sampled_from([None, 16]),
            "use_sliding_window": st.booleans(),
            "max_window_layers": st.integers(0, 4),
            "attention_bias": st.booleans(),
            "eos_token_id": st.sampled_from([None, 3, [3, 4]]),
            "pad_token_id": st.sampled_from([None, 0]),
        },
    ),
)
def test_any_config_survives_the_round_trip_in_either_spelling(kind, rope, theta, new_spelling, rest):
    if not new_spelling:
        rest = {**rest, "rope_theta": theta, "rope_scaling": rope or None}
    elif kind == "gemma3_text":
        rest = {**rest, "rope_parameters": {"full_attention": {**rope, "rope_theta": theta}}}
    else:
        rest = {**rest, "rope_parameters": {**rope, "rope_theta": theta}}
    read = config(kind, **rest)
    assert read.rope.theta == theta
    assert read.rope.factor == rope.get("factor", 1.0)
    assert from_hf(to_hf(read)) == read


def test_what_config_json_leaves_out_is_what_transformers_assumes():
    assert not config("llama").tie_embeddings
    assert config("llama").num_kv_heads == 4
    assert config("llama").head_dim == 16
    assert config("llama").eos_ids == (2,)
    assert config("qwen2").qkv_bias
    assert not config("qwen2").o_bias
    assert config("qwen3").head_dim == 128
    assert config("mistral", num_key_value_heads=4).sliding_window == 4096
    assert config("mistral", num_key_value_heads=4, sliding_window=None).sliding_window is None
    gemma = config("gemma3_text", num_hidden_layers=12)
    assert gemma.tie_embeddings
    assert gemma.rope == RopeConfig(1_000_000.0)
    assert gemma.rope_local == RopeConfig(10_000.0)
    assert gemma.attention_scale == 1 / 16
    assert gemma.sliding_pattern == (True, True, True, True, True, False) * 2
    gpt2 = from_hf({"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": None})
    assert gpt2.tie_embeddings
    assert gpt2.intermediate_size == 32
    assert gpt2.max_position == 1024


def test_two_sections_of_the_rotation_that_say_the_same_are_one():
    newer = {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4}
    both = config("llama", rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=newer)
    assert both.rope == config("llama", rope_parameters=newer).rope != config("llama").rope


def test_qwen_slides_only_where_it_says_so():
    assert config("qwen2", sliding_window=8).sliding_window is None
    sliding = config("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=3)
    assert (sliding.sliding_window, sliding.sliding_pattern) == (8, (False, False, False, True))
    types = ["full_attention", "sliding_attention"] * 2
    sliding = config("qwen3", sliding_window=8, use_sliding_window=True, layer_types=types)
    assert sliding.sliding_pattern == (False, True, False, True)


GEMMA4 = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "deepseek_v3"}, ["model_type is 'deepseek_v3'", "llama, mistral"]),
        ({"model_type": "qwen3_5"}, ["model_type is 'qwen3_5'", "gated delta nets, which are not implemented"]),
        ({"model_type": None}, ["model_type is None", "expected one of llama"]),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "llama"}},
            ["is 'llama', expected 'mistral' or 'ministral3'"],
        ),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping is 30.0"]),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, ["attn_logit_softcapping is 50.0"]),
        ({"model_type": "gemma2", "final_logit_softcapping": 0}, ["final_logit_softcapping is 0", "above 0"]),
        ({"model_type": "cohere", "use_qk_norm": True}, ["use_qk_norm is True, expected false"]),
        ({"model_type": "cohere2", "sliding_window": None}, ["sliding_window is None"]),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, ["no_rope_layers is [1, 0]", "4 entries"]),
        ({"model_type": "smollm3", "layer_types": ["sliding_attention"] * 4}, ["without use_sliding_window"]),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLLG"}, ["sliding_window_pattern is 'LLLG'"]),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, ["use_bidirectional_attention is True"]),
        ({"model_type": "gemma4_text"}, ["hidden_size_per_layer_input is None, expected 0: embeddings of each layer"]),
        ({**GEMMA4, "num_kv_shared_layers": 2}, ["num_kv_shared_layers is 2, expected 0"]),
        ({**GEMMA4, "enable_moe_block": True}, ["enable_moe_block is True, expected false"]),
        ({**GEMMA4, "use_bidirectional_attention": "all"}, ["use_bidirectional_attention is 'all'", "'vision'"]),
        ({**GEMMA4, "layer_types": ["sliding_attention"] * 4}, ["layer_types is", "full_attention as the last"]),
        ({**GEMMA4, "per_layer_config": {"1": {"head_dim": 32}}}, ["per_layer_config is", "of each layer of full"]),
        ({**GEMMA4, "per_layer_config": [{}]}, ["per_layer_config is", "of each layer of full"]),
        ({**GEMMA4, "sliding_window": None}, ["sliding_window is None, expected a whole number"]),
        ({"model_type": "lfm2", "layer_types": ["conv"] * 4}, ["layer_types is", "a layer of full attention at least"]),
        ({"model_type": "lfm2", "full_attn_idxs": "1"}, ["full_attn_idxs is '1', expected a list of layers"]),
        ({"model_type": "lfm2", "block_ff_dim": 0}, ["block_ff_dim is 0, expected a whole number above 0"]),
        ({"model_type": "lfm2", "block_ffn_dim_multiplier": 1e-9}, ["block_ffn_dim_multiplier is 1e-09", "a width"]),
        ({"model_type": "lfm2", "conv_dim": 32}, ["conv_dim is 32, expected hidden_size"]),
        ({"model_type": "lfm2", "conv_L_cache": 4096}, ["conv_L_cache is 4096, expected at most 1,024"]),
        ({"model_type": "lfm2", "conv_L_cache": 1}, ["conv_L_cache is 1, expected 2 or more"]),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            ["rope_scaling is", "expected what rope_parameters says, or one of the two alone"],
        ),
        ({"rope_scaling": {"rope_type": "mrope"}}, ["rope_type is 'mrope'", "dynamic, yarn, longrope, llama3"]),
        ({"rope_scaling": {"type": "dynamic"}}, ["rope scaling: factor is None", "a number above 0"]),
        ({"rope_scaling": {"type": "yarn"}}, ["rope scaling: factor is None"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1.0}, ["rope_theta is", "a number above 1"]),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, ["short_factor is None", "a list of numbers"]),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 3}},
            ["long_factor is [2.0, 2.0, 2.0]", "8 numbers, one for each pair"],
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor is None", "a number above 0"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor is 0.5"]),
        ({"hidden_act": "relu"}, ["hidden_act is 'relu'", "silu, gelu_pytorch_tanh, gelu_new"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config is {'quant_method': 'gptq'}"]),
        ({"hidden_size": "64"}, ["hidden_size is '64'", "whole number above 0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0"]),
        ({"vocab_size": None}, ["vocab_size is None"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "divisor of the 4"]),
        ({"head_dim": 15}, ["even width"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings is 'yes'", "true or false"]),
        ({"eos_token_id": ["a"]}, ["eos_token_id is ['a']"]),
        ({"rms_norm_eps": -1.0}, ["rms_norm_eps is -1.0"]),
        ({"rope_scaling": 3}, ["rope_scaling is 3"]),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["chunked"] * 4}, ["layer_types is"]),
        ({**GPT2, "n_head": 3}, ["n_head is 3"]),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True"]),
    ],
)
def test_what_is_not_implemented_or_not_sensible_is_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as caught:
        from_hf({"model_type": "llama", **SMALL, **settings}, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("given", "part"), [({}, 0.5), ({"partial_rotary_factor": None}, 1.0)])
def test_glm_rotates_half_of_a_head_and_ends_by_three_tokens_where_nothing_is_said(given, part):
    silent = {key: value for key, value in to_hf(random_config("glm4")).items() if key != "partial_rotary_factor"}
    config = from_hf({**silent, "vocab_size": 151_552, "eos_token_id": None, **given})
    assert (config.rope.partial, config.eos_ids) == (part, (151_329, 151_336, 151_338))
    assert from_hf(to_hf(config)) == config
