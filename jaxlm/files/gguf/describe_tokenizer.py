"""A byte-level tokenizer as GGUF metadata, from which `build_tokenizer` and llama.cpp make it again."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from jaxlm.families.config import ModelConfig
from jaxlm.files.gguf.tokenizer import CONTROL, UNUSED, USER_DEFINED, build_tokenizer, cut_name
from jaxrun.process.errors import UserError

NORMAL = 1
_SAMPLE = "The  year 1984, it's\tshe'll: naïve café — x_1+=2;\n\n  三つ 🙂 ABCdef 00012 <|im_start|>"


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> dict[str, Any]:
    """Returns the metadata of a tokenizer, with unused tokens up to the model's vocabulary.

    Args:
        tokenizer: Of a model.
        config: The model's.

    Raises:
        UserError: It is no byte-level one whose cuts have a name in GGUF.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = {} if backend is None else json.loads(backend.to_str())
    name = cut_name(whole)
    if backend is None or name is None:
        raise UserError(
            "format: gguf, for which the tokenizer is of no known kind, expected a byte-level one such as SmolLM2's, "
            "Llama 3's or Qwen2's, or format hf"
        )
    size, known = config.vocab_size, len(tokenizer)
    if known > size:
        raise UserError(f"format: gguf of {known} tokens for a vocabulary of {size}, expected format hf")
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for token, index in whole["model"]["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for one in whole["added_tokens"]:
        tokens[one["id"]], kinds[one["id"]] = one["content"], CONTROL if one["special"] else USER_DEFINED
    ends = [index for index in config.eos_ids if index < size]
    given = tokenizer("a").input_ids
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [one if isinstance(one, str) else " ".join(one) for one in whole["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": bool(given) and given[0] == tokenizer.bos_token_id,
        "tokenizer.ggml.add_eos_token": len(given) > 1 and given[-1] == tokenizer.eos_token_id,
    }
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": ends[0] if ends else tokenizer.eos_token_id,
        "eot": ends[1] if len(ends) > 1 else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    found |= {f"tokenizer.ggml.{key}_token_id": index for key, index in named.items() if index is not None}
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    again, _ = build_tokenizer(found, "format: gguf")
    if again.encode(_SAMPLE).ids != backend.encode(_SAMPLE).ids:
        raise UserError("format: gguf, in which the tokenizer would be another one, expected format hf")
    return {key: value for key, value in found.items() if value != []}
