"""GGUF files that are written here are the model again, with its tokenizer, or are refused in one line."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny, variables

from jaxlm.families.config import FIRST, OtherLayers
from jaxlm.families.registry import random_config
from jaxlm.families.rope import RopeConfig
from jaxlm.files.gguf.file import open_gguf
from jaxlm.files.gguf.writer import write_gguf
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.functional import weights_by_path
from jaxrun.process.errors import UserError

LLAMA3 = RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=8192)


def widened(family, rows):
    """The tiny model's weights with room for more tokens."""
    values = weights_by_path(tiny(family), jnp.float32)
    return {
        path: jnp.pad(value, ((0, rows - len(value)), (0, 0))) if path.endswith(".embedding") else value
        for path, value in values.items()
    }


def written(path, family, dtype="float32", **changes):
    config = replace(random_config(family), vocab_size=264, **changes)
    values = widened(family, 264)
    return write_gguf(path, config, values, dtype=dtype, name="small", tokenizer=load_tokenizer("configs/tiny"))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_weights_and_config_come_back_to_the_bit(family, tmp_path):
    changes = {"rope": LLAMA3} if family == "llama" else {"sliding_window": None, "sliding_pattern": None}
    config = written(tmp_path / "m.gguf", family, **changes)
    read, model = load_model(tmp_path / "m.gguf", dtype=jnp.float32)
    assert replace(read, bos_id=config.bos_id, eos_ids=config.eos_ids, pad_id=config.pad_id) == config
    for path, value in widened(family, 264).items():
        np.testing.assert_array_equal(variables(model)[path], value)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_matrices_are_of_the_dtype_and_vectors_stay_whole(dtype, kind, tmp_path):
    written(tmp_path / "m.gguf", "qwen2", dtype)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in open_gguf(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.0.attn_q.bias"] == kinds["output_norm.weight"] == "F32"


def test_the_tokenizer_of_a_real_model_comes_back(smollm2, tmp_path):
    own = load_tokenizer(smollm2)
    config = replace(random_config("llama"), vocab_size=len(own) + 8, eos_ids=(2, 0), tie_embeddings=True)
    values = widened("llama", config.vocab_size)
    write_gguf(tmp_path / "m.gguf", config, values, dtype="float16", name="small", tokenizer=own)
    again = load_tokenizer(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="gguf of 49152 tokens for a vocabulary of 264"):
        write_gguf(tmp_path / "n", replace(config, vocab_size=264), {}, dtype="float16", name="small", tokenizer=own)
    text = "It's 12 o'clock,\n\n naïve <|im_start|>user"
    assert again(text).input_ids == own(text).input_ids and again.chat_template == own.chat_template
    assert load_model(tmp_path / "m.gguf", dtype=jnp.float32)[0].eos_ids == (2, 0)


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("gpt2", {}, "gguf of gpt2, expected llama, mistral, qwen2, qwen3"),
        ("llama", {"others": (OtherLayers(FIRST, (0,), (("intermediate_size", 128),)),)}, "layers of several shapes"),
        ("mistral", {"sliding_window": 8}, "layers that slide"),
        ("llama", {"rope": RopeConfig(scaling="linear", factor=2.0)}, "a rotation of type linear"),
    ],
)
def test_what_would_be_another_model_is_refused_and_nothing_written(family, changes, why, tmp_path):
    with pytest.raises(UserError, match=why):
        written(tmp_path / "m.gguf", family, **changes)
    assert not list(tmp_path.iterdir())
