"""GPT-2: learned positions, LayerNorm, q, k and v in one projection, and names of its own for all of it."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import ACTIVATIONS
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {
    "norm": "layer",
    "gated_mlp": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "fused_qkv": True,
    "positions": "learned",
}


def _read(settings: Settings) -> ModelConfig:
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    return ModelConfig(
        family="gpt2",
        vocab_size=settings.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.count("intermediate_size", 4 * hidden),
        num_layers=settings.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_position=settings.count("max_position_embeddings", 1024),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[settings.word("hidden_act", ACTIVATIONS, "gelu_new")],
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        bos_id=settings.token("bos_token_id", 50256),
        eos_ids=settings.tokens("eos_token_id", 50256),
        pad_id=settings.token("pad_token_id", None),
        **_SWITCHES,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_position,
        "n_inner": config.intermediate_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
    }


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    return {
        "n_embd": metadata.get("embedding_length"),
        "n_layer": metadata.get("block_count"),
        "n_head": metadata.get("attention.head_count"),
        "n_positions": metadata.get("context_length"),
        "n_inner": metadata.get("feed_forward_length"),
        "layer_norm_epsilon": metadata.get("attention.layer_norm_epsilon"),
    }


GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    causal_lm="GPT2LMHeadModel",
    read=_read,
    write=_write,
    example=example(
        "gpt2",
        num_kv_heads=4,
        intermediate_size=256,
        max_position=128,
        norm_eps=1e-5,
        activation="gelu_tanh",
        tie_embeddings=True,
        **_SWITCHES,
    ),
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    },
    idle=frozenset(
        {"resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "n_ctx"}
        | {f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}
    ),
    prefix="transformer.",
    layers="h.{i}.",
    modules={
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "norm": "ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.c_attn": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    transposed=False,
    heads="fill",
    gguf=GGUFFormat("gpt2", _read_gguf),
)
