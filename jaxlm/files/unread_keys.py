"""Keys of a model that its family does not read: refused where another program would compute something else by them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import Keys
from transformers import CONFIG_MAPPING

from jaxlm.families.family import Family
from jaxlm.families.gguf import GGUFMetadata
from jaxlm.families.settings import Settings, short
from jaxrun.process.errors import UserError
from jaxrun.process.notices import tell_once

ONE_VALUE: Mapping[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "attention_chunk_size": None,
    "per_layer_config": None,
    "kv_sharing_modes": None,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "transformers_weights": None,
}
"""Settings that change the result and are computed for one value only, but by a family that says otherwise."""
IDLE = frozenset(
    {
        # What a model is called, and what wrote it.
        *("model_type", "architectures", "auto_map", "_name_or_path", "name_or_path", "_commit_hash"),
        *("transformers_version", "transformers.js_config", "unsloth_version", "unsloth_fixed", "torch_dtype", "dtype"),
        # How a program computes it, and what it returns.
        *("use_cache", "use_bfloat16", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
        *("_flash_attn_2_enabled", "torchscript", "return_dict", "output_attentions", "output_hidden_states"),
        *("gradient_checkpointing", "chunk_size_feed_forward", "pretraining_tp", "cache_implementation"),
        # How it was trained: weights of the base are frozen, and nothing in it is dropped.
        *("initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "dropout"),
        # Tasks that its class is not for.
        *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
        *("is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size", "decoder_start_token_id"),
        *("tokenizer_class", "prefix", "sep_token_id"),
        # How it writes: settings of older files; generation_config.json has them today.
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "num_beam_groups"),
        *("num_return_sequences", "max_length", "min_length", "max_new_tokens", "early_stopping", "length_penalty"),
        *("diversity_penalty", "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
        *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
        *("exponential_decay_length_penalty", "output_scores", "return_dict_in_generate", "remove_invalid_values"),
    }
)
"""Keys that change nothing that is computed here, whatever the family."""
TOWER_KEYS = frozenset(
    {
        *("text_config", "vision_config", "audio_config", "image_token_id", "image_token_index", "video_token_id"),
        *("vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    }
)
"""Keys of a multimodal model that its text half does not have."""
SHARED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", *ONE_VALUE)
"""Keys that the text half has of the whole, where its own section is silent."""
IDLE_METADATA = frozenset(
    {
        *("vocab_size", "tensor_data_layout", "attention.value_length", "pooling_type", "classifier.output_labels"),
        *("expert_used_count", "rope.scaling.finetuned", "rope.scaling.original_context_length"),
        *("rope.dimension_count", "embedding_length_out"),
    }
)
"""The same of GGUF, without the architecture in front."""


def refuse_uncomputed(family: Family, settings: Settings) -> None:
    """Refuses the settings of `ONE_VALUE` that have another value, and two sections of the rotation that differ.

    Raises:
        UserError: There is one, or are two.
    """
    _refuse_two_rotations(settings)
    for key, only in ONE_VALUE.items():
        if key not in family.computes and settings.get(key, only) != only:
            raise settings.fail(key, f"{only!r}: other values are not implemented")


def _refuse_two_rotations(settings: Settings) -> None:
    """Refuses two sections that differ: transformers takes the older one, unless the newer one is by kind of layer."""
    older, newer = settings.raw.get("rope_scaling"), settings.raw.get("rope_parameters")
    if not isinstance(older, Mapping) or not isinstance(newer, Mapping):
        return
    said = {"rope_type" if key == "type" else key: value for key, value in older.items()}
    by_kind = any(isinstance(one, Mapping) for one in newer.values())
    if newer and not by_kind and said != {key: newer.get(key) for key in said}:
        raise settings.fail("rope_scaling", "what rope_parameters says, or one of the two alone")


def check_unread(family: Family, settings: Settings) -> None:
    """Refuses keys that the family's class in transformers reads and the family has not; says once what neither reads.

    Args:
        family: Of the model.
        settings: Its config.json, which the family has read.

    Raises:
        UserError: A key of the class has another value than its default, which is what is computed.
    """
    raw = settings.raw
    left = [key for key in raw if key not in settings.asked | family.idle | IDLE and raw[key] is not None]
    if not left:
        return
    computed = _defaults(family.model_type, raw)
    for key in left:
        if key in computed and raw[key] != computed[key]:
            raise Settings(raw, settings.where).fail(key, f"{computed[key]!r}: other values are not implemented")
    if unknown := sorted(set(left) - computed.keys()):
        tell_once(f"{settings.where}: ignored, as in transformers: {', '.join(unknown)}")


def _defaults(model_type: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that transformers' class of a model reads, with what it takes where a file is silent."""
    if model_type not in CONFIG_MAPPING:
        return {}
    kind = CONFIG_MAPPING[model_type]
    found = {one.name: None if one.default is dataclasses.MISSING else one.default for one in dataclasses.fields(kind)}
    return found | {other: raw.get(name) for other, name in kind.attribute_map.items()}


def text_defaults(model_type: str, read_as: str) -> dict[str, Any]:
    """Returns what transformers' class of a text half takes where its section is silent, but for the tokens.

    Args:
        model_type: Of the half.
        read_as: Model type of the class that it is read as: of what that has and the half's own has not there is none.
    """
    lacks = dict.fromkeys(_defaults(read_as, {}).keys() - _defaults(model_type, {}).keys())
    found = {key: value for key, value in _defaults(model_type, {}).items() if value is not None}
    theta = getattr(CONFIG_MAPPING[model_type], "default_theta", None) if model_type in CONFIG_MAPPING else None
    if isinstance(theta, float):
        found["rope_theta"] = theta
    return lacks | {key: value for key, value in found.items() if key not in SHARED_KEYS}


def check_metadata(metadata: GGUFMetadata) -> None:
    """Does for GGUF what `check_unread` does for a config.json.

    Args:
        metadata: Of a file, which the family has read.

    Raises:
        UserError: A key that llama.cpp knows has a value other than none, false or 0.
    """
    prefix = f"{metadata.architecture}."
    given = {key.removeprefix(prefix): value for key, value in metadata.values.items() if key.startswith(prefix)}
    left = {key: value for key, value in given.items() if key not in metadata.asked | IDLE_METADATA and value}
    known = set(_texts(Keys))
    for key, value in left.items():
        if f"{{arch}}.{key}" in known:
            raise UserError(f"{metadata.where}: {prefix}{key} is {short(value)}, expected none: it is not implemented")
    if left:
        tell_once(f"{metadata.where}: ignored, as in llama.cpp: {', '.join(prefix + key for key in sorted(left))}")


def _texts(kind: type) -> Iterator[str]:
    """Returns the keys of a class of the gguf package and of the classes in it."""
    for value in vars(kind).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, type):
            yield from _texts(value)
