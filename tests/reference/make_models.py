"""Writes a small random model of each family with transformers, and what transformers computes with it.

usage: make_models.py FOLDER [NAME ...]

FOLDER/NAME is a model folder; FOLDER/NAME.npz holds `tokens` [2, 40], `logits` [2, 40, vocab], `short`, logits of
their first 12 tokens alone, `greedy` [1, 28], and gradients of the loss of `tokens` in projections of mixers and in
the last of an MLP, by name. With NAMEs only these are written.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    Cohere2Config,
    CohereConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TRAINED = (
    *("q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"),
    *("in_proj.weight", "out_proj.weight", "feed_forward.w2.weight"),
)
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}


def configs():
    yield "llama", LlamaConfig(**SIZES, head_dim=20, rope_parameters=LLAMA3, rms_norm_eps=1e-5)
    linear = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    biased = {"attention_bias": True, "mlp_bias": True}
    yield "llama-biased", LlamaConfig(**SIZES, **biased, rope_parameters=linear, tie_word_embeddings=True)
    yield "mistral", MistralConfig(**SIZES, head_dim=16, sliding_window=7)
    yield "qwen2", Qwen2Config(**SIZES, tie_word_embeddings=True)
    sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    yield "qwen2-sliding", Qwen2Config(**SIZES, **sliding)
    yield "qwen3", Qwen3Config(**SIZES, head_dim=32)
    gemma = {"sliding_window": 7, "query_pre_attn_scalar": 24, "rope_parameters": GEMMA_ROPE}
    gemma["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    yield "gemma3", Gemma3TextConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=32, **gemma)
    longrope = {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.0, 2.0, 9.0, 30.0],
    }
    part = {"partial_rotary_factor": 0.67, "original_max_position_embeddings": 20, "rope_parameters": longrope}
    yield "phi3", Phi3Config(**SIZES, **part, sliding_window=30, tie_word_embeddings=True)
    yield "glm", GlmConfig(**SIZES, head_dim=20, partial_rotary_factor=0.6, attention_bias=False)
    yield "glm4", Glm4Config(**SIZES, head_dim=16)
    yield "seed_oss", SeedOssConfig(**SIZES, head_dim=16, attention_out_bias=True)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    yield "smollm3", SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1])
    windows = {"use_sliding_window": True, "sliding_window": 7, "no_rope_layer_interval": 2}
    yield "smollm3-sliding", SmolLM3Config(**SIZES, **windows, attention_bias=True, mlp_bias=True)
    multipliers = {"embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.22}
    yield "granite", GraniteConfig(**SIZES, **multipliers, logits_scaling=8.0)
    yield "olmo2", Olmo2Config(**SIZES)
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 500_000.0}
    rope = {"full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0}}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    yield "olmo3", Olmo3Config(**SIZES, sliding_window=7, layer_types=types, rope_parameters=rope)
    final = {"final_logit_softcapping": 1.5}
    grouped = {**SIZES, "num_key_value_heads": 1}
    yield (
        "gemma2",
        Gemma2Config(
            **grouped, head_dim=32, sliding_window=7, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, **final
        ),
    )
    yield "gemma3-capped", Gemma3TextConfig(**grouped, head_dim=32, **gemma, **final)
    full = {"global_head_dim": 32, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0, **final}
    types4 = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    yield (
        "gemma4",
        Gemma4TextConfig(
            **{**SIZES, "num_hidden_layers": 6},
            head_dim=16,
            sliding_window=7,
            layer_types=types4,
            attention_k_eq_v=True,
            **full,
        ),
    )
    yield "gemma4-values", Gemma4TextConfig(**SIZES, head_dim=16, sliding_window=7, attention_bias=True, **full)
    yield "cohere", CohereConfig(**SIZES, logit_scale=0.5, attention_bias=True)
    yield "cohere2", Cohere2Config(**SIZES, logit_scale=0.25, sliding_window=7, layer_types=types)
    yield "exaone4", Exaone4Config(**SIZES, sliding_window=7, layer_types=types)
    yield "exaone4-full", Exaone4Config(**SIZES, sliding_window=None, layer_types=["full_attention"] * 3)
    yield "ministral", MinistralConfig(**SIZES, head_dim=16, sliding_window=7, layer_types=types)
    grows = {
        **yarn,
        "original_max_position_embeddings": 8,
        "llama_4_scaling_beta": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    yield "ministral3", Ministral3Config(**SIZES, head_dim=16, rope_parameters=grows)
    experts = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 16}
    yield "qwen3_moe", Qwen3MoeConfig(**SIZES, **experts, norm_topk_prob=True)
    yield "qwen3_moe-unnormed", Qwen3MoeConfig(**SIZES, **experts, use_sliding_window=True, sliding_window=7)
    yield "mixtral", MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    oss = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "swiglu_limit": 1.0}
    yield (
        "gpt_oss",
        GptOssConfig(**SIZES, **oss, sliding_window=7, layer_types=types, rope_parameters={**yarn, "truncate": False}),
    )
    whole = {**SIZES, "hidden_size": 64, "intermediate_size": 32}
    yield "gpt_oss-mxfp4", GptOssConfig(**whole, **oss, sliding_window=7, layer_types=types)
    conv = {"layer_types": ["conv", "conv", "full_attention"] * 2, "block_multiple_of": 16}
    yield "lfm2", Lfm2Config(**{**SIZES, "num_hidden_layers": 6, "eos_token_id": 7}, **conv)
    other = {"layer_types": ["full_attention", "conv", "conv"], "block_auto_adjust_ff_dim": False}
    yield "lfm2-biased", Lfm2Config(**SIZES, **other, conv_bias=True, conv_L_cache=5, tie_word_embeddings=False)
    yield "gpt2", GPT2Config(vocab_size=211, n_embd=48, n_layer=3, n_head=4, n_positions=64, **tokens)


def randomise(model):
    """Weights far from the all-alike values of a fresh model, so that no switch can hide."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.copy_(noise * (0.5 if "emb" in name or "wte" in name else parameter.shape[-1] ** -0.5))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.3)
        else:
            parameter.add_(noise * 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.add_(torch.randn_like(buffer) * 0.3)


def pack_experts(model):
    """Fills experts with random numbers of 4 bits; returns how gpt-oss stores them."""
    stored = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = parameter.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            parameter.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return stored


def store_packed(folder, stored):
    """Puts packed experts in the place of the others."""
    path, config = folder / "model.safetensors", folder / "config.json"
    kept = {key: value for key, value in load_file(path).items() if f"{key}_blocks" not in stored}
    save_file(kept | stored, path, metadata={"format": "pt"})
    method = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    config.write_text(json.dumps(json.loads(config.read_text()) | method))


@torch.no_grad()
def main(folder: Path, *names: str):
    for number, (name, config) in enumerate(configs()):
        if names and name not in names:
            continue
        torch.manual_seed(number)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomise(model)
        packed = pack_experts(model) if name.endswith("mxfp4") else {}
        tokens = torch.randint(3, 211, (2, 40))
        greedy = model.generate(tokens[:1, :12], max_new_tokens=16, do_sample=False, min_new_tokens=16)
        logits, short = model(tokens).logits, model(tokens[:, :12]).logits
        with torch.enable_grad():
            model(tokens, labels=tokens).loss.backward()
        slopes = {key: parameter.grad.numpy() for key, parameter in model.named_parameters() if key.endswith(TRAINED)}
        # One model in several files, as large ones come.
        model.save_pretrained(folder / name, max_shard_size="40KB" if name == "mistral" else "1GB")
        if packed:
            store_packed(folder / name, packed)
        found = {"tokens": tokens, "logits": logits, "short": short, "greedy": greedy}
        np.savez(folder / f"{name}.npz", **{what: value.numpy() for what, value in found.items()}, **slopes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
