"""Tickets as GGUF files, in the form that llama.cpp reads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxlm.families.config import ModelConfig
from jaxlm.files.gguf.writer import gguf_config, write_gguf
from twistjax.tickets.hf_ticket import contained


def gguf_container(config: ModelConfig) -> ModelConfig:
    """Returns the config that a ticket has in GGUF.

    A Qwen2 that has lost heads is a Llama there, with a bias of zeros at its output projection: llama.cpp takes the
    width over the heads for the width of a head of Qwen2's, and reads that of Llama's.

    Raises:
        UserError: As `gguf_config`.
    """
    config = gguf_config(config)
    if config.family == "qwen2" and config.q_width != config.hidden_size:
        return replace(config, family="llama", o_bias=True)
    return config


def save_gguf_ticket(
    path: Path, config: ModelConfig, weights: Mapping[str, Array], *, dtype: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a ticket and reads it back.

    Args:
        path: The file; its stem is the model's name.
        config: The ticket's shapes.
        weights: By path, any correction folded in.
        dtype: Of its matrices; vectors are float32.
        tokenizer: Its tokenizer, which is in the file.

    Raises:
        UserError: As `gguf_container`; a tokenizer that GGUF has no name for; full disk, no permission.
    """
    container = gguf_container(config)
    write_gguf(path, container, contained(container, weights), dtype=dtype, name=path.stem, tokenizer=tokenizer)
