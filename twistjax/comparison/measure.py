"""Measures a model folder on this machine: perplexity, size, and speed of prefill and decoding."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.data.config import DataConfig
from jaxlm.data.text_rows import read_validation_text
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.hub import find_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.generate import generate
from jaxlm.models.perplexity import perplexity
from jaxlm.models.transformer import Transformer
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from twistjax.training.scoring import model_loss


class Speed(NamedTuple):
    """Tokens a second, compilation left out.

    Attributes:
        reading: Of a forward pass over whole rows, up to the last hidden state.
        writing: Of one continuation, token by token.
    """

    reading: float
    writing: float


def measure_model(
    source: str,
    *,
    data: str | None,
    max_length: int,
    max_samples: int | None,
    batch_size: int,
    new_tokens: int,
    dtype: str,
    out: str | None = None,
) -> dict[str, float]:
    """Measures a model; arguments as of ``twistjax measure``.

    Returns:
        Values by what they are.

    Raises:
        UserError: No such model or text, or more new tokens than the model has positions for.
    """
    config, model = load_model(source, dtype=jnp.dtype(dtype))
    if new_tokens >= config.max_position:
        raise UserError(
            f"new_tokens: given {new_tokens}, expected fewer than the model's {config.max_position} positions"
        )
    path = find_model(source)
    results = {
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))),
        "MB of weights": file_bytes(path) / 1e6,
        "vocabulary": float(config.vocab_size),
    }
    if data is not None:
        wanted = DataConfig(train=data, validation=data, max_length=max_length, validation_samples=max_samples)
        rows = read_validation_text(wanted, load_tokenizer(source))
        results["tokens of text"] = float(rows.targets.sum())
        results["perplexity"] = perplexity(model_loss(model, rows.tokens, rows.targets, batch_size))
    if new_tokens:
        length = min(max_length, config.max_position - new_tokens)
        reading, writing = speed(model, rows=batch_size, length=length, new_tokens=new_tokens)
        results |= {"tokens/s reading": reading, "tokens/s writing": writing}
    if out is not None:
        write_atomic(out, json.dumps({"model": source, **results}, indent=2) + "\n")
    return results


def speed(model: Transformer, *, rows: int, length: int, new_tokens: int, repeats: int = 3) -> Speed:
    """Measures how fast a model reads and writes; the best of `repeats`.

    Args:
        model: The model.
        rows: Rows read at once.
        length: Tokens of a row, and of the prompt that is continued.
        new_tokens: Tokens to write.
        repeats: Times each is done, after one that compiles.
    """
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, model.config.vocab_size, (rows, length)), jnp.int32)
    functional = Functional(model.config, dtype=model.dtype)
    weights = weights_by_path(model, model.dtype)
    read = jax.jit(lambda weights, tokens: functional.bind(weights)(tokens))
    prompt, lengths = tokens[:1], jnp.full((1,), length, jnp.int32)

    def write() -> jax.Array:
        return generate(model, prompt, lengths, max_new_tokens=new_tokens)

    read_s = _seconds(lambda: read(weights, tokens), repeats)
    write_s = _seconds(write, repeats)
    return Speed(rows * length / read_s, new_tokens / write_s)


def file_bytes(folder: Path) -> int:
    """Returns the bytes of the weight files that a model is loaded from."""
    files = {folder} if folder.is_file() else set(HFFolder(folder).files.values())
    return sum(path.stat().st_size for path in files)


def _seconds(call: Callable[[], jax.Array], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return min(times[1:])
