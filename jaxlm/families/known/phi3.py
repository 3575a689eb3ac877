"""Phi-3, 3.5 and 4: Llama with q, k and v in one projection, gate and up in another; heads may rotate in part."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"fused_qkv": True, "fused_gate_up": True}
_ORIGINAL = "original_max_position_embeddings"


def _read(settings: Settings) -> ModelConfig:
    rope = {**settings.section("rope_scaling"), **settings.section("rope_parameters")}
    key = "rope_type" if rope.get("rope_type") is not None else "type"
    if rope.get(key) == "yarn":
        rope[key] = "longrope"  # so transformers reads it here
    elif rope.get(key, "default") not in ("default", "su", "longrope"):
        raise Settings(rope, f"{settings.where}: rope scaling").fail(key, "longrope")
    rope[_ORIGINAL] = settings.count(_ORIGINAL, 4096)
    windowed = settings.get("sliding_window") is not None
    return read_decoder(
        settings,
        "phi3",
        tokens=(1, 32000, 32000),
        max_position=4096,
        eps=1e-5,
        rope=rope,
        rotates_part=True,
        sliding_window=settings.count("sliding_window") if windowed else None,
        **_SWITCHES,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    raw = {_ORIGINAL: config.max_position, **write_decoder(config), "sliding_window": config.sliding_window}
    if (scaling := raw["rope_scaling"]) is not None:
        # Its class in transformers 4 takes these three keys alone, and has the other beside them.
        raw["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
        del raw["rope_scaling"][_ORIGINAL]
    return raw


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata, rotates_part=True)
    original = metadata.get("rope.scaling.original_context_length", metadata.get("context_length"))
    return raw | {_ORIGINAL: original, "sliding_window": metadata.get("attention.sliding_window") or None}


PHI3 = Family(
    name="phi3",
    model_type="phi3",
    causal_lm="Phi3ForCausalLM",
    read=_read,
    write=_write,
    example=example(
        "phi3",
        norm_eps=1e-5,
        rope=RopeConfig(
            scaling="longrope",
            original_max_position=64,
            attention_factor=1.25,
            short_factors=(1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
            long_factors=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
            partial=0.75,
        ),
        sliding_window=8,
        **_SWITCHES,
    ),
    idle=frozenset({"resid_pdrop", "embd_pdrop"}),
    computes=frozenset({"partial_rotary_factor"}),
    relatives={
        "phi3small": "whose attention is sparse in blocks; expected 'phi3'",
        "phimoe": "a mixture of experts; expected 'phi3'",
        "phi3_v": "which also holds a vision tower; expected a text-only 'phi3'",
        "phi4mm": "which also holds towers of vision and speech; expected a text-only 'phi3'",
    },
    modules={"self_attn.c_attn": "self_attn.qkv_proj"},
    heads="fill",
    gguf=GGUFFormat("phi3", _read_gguf),
)
