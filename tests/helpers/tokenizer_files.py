"""Small tokenizers and GGUF files for tests."""

from pathlib import Path

import gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny"


def byte_vocabulary() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path, tokens: list[str], kinds: list[int], *, model: str, architecture: str = "llama", **fields):
    """Writes a GGUF file that holds a tokenizer and nothing else; `fields` are keys under tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for key, value in fields.items():
        if key == "chat_template":
            writer.add_chat_template(value)
        elif key == "scores":
            writer.add_token_scores(value)
        elif key == "merges":
            writer.add_token_merges(value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_string(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level_tokenizer(merges: list[tuple[str, str]], special: list[str], **settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the 256 bytes and a few merges, with GPT-2's cuts turned off so that merges cross words."""
    tokens = [*byte_vocabulary(), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
