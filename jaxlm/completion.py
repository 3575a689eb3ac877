"""Completes prompts of any lengths, in batches of like ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.batching.buckets import bucket_length, default_buckets
from jaxlm.models.generate import generate
from jaxlm.models.sampling import Sampling
from jaxlm.models.transformer import Transformer
from jaxrun.process.errors import UserError


def complete(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    eos_ids: Sequence[int],
    routing: Callable[[int], Any] = lambda rows: None,
    made_some: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """Continues prompts.

    Args:
        model: The model.
        prompts: int32 [length] each.
        sampling: How.
        eos_ids: Tokens that end a text.
        routing: Gives what is handed to every projection of a batch of so many rows.
        made_some: Called with the number of prompts completed, whenever it grows.

    Returns:
        The new tokens of each prompt, int32, up to its first end token.

    Raises:
        UserError: A prompt and its new tokens are more than the model has positions for.
    """
    limit = model.config.max_position
    longest = max(len(prompt) for prompt in prompts)
    if longest + sampling.max_new_tokens > limit:
        raise UserError(
            f"max_new_tokens={sampling.max_new_tokens}: a prompt has {longest} tokens, expected at most the "
            f"model's {limit} in all"
        )
    buckets = default_buckets(longest)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    made: dict[int, np.ndarray] = {}
    for first in range(0, len(prompts), sampling.batch_size):
        members = by_length[first : first + sampling.batch_size]
        length = min(bucket_length(len(prompts[members[-1]]), buckets), limit - sampling.max_new_tokens)
        rows = np.zeros((min(sampling.batch_size, len(prompts)), length), np.int32)
        lengths = np.ones(len(rows), np.int32)
        for row, i in enumerate(members):
            rows[row, : len(prompts[i])] = prompts[i]
            lengths[row] = len(prompts[i])
        new = generate(
            model,
            rows,
            lengths,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed + first,
            eos_ids=tuple(eos_ids),
            routing=routing(len(rows)),
        )
        for i, tokens in zip(members, np.asarray(new), strict=False):
            ends = np.flatnonzero(np.isin(tokens, eos_ids))
            made[i] = tokens[: ends[0]] if ends.size else tokens
        made_some(len(made))
    return [made[i] for i in range(len(prompts))]


def texts(prompts: str | Sequence[str]) -> list[str]:
    """Returns prompts as a list; one alone is a list of one.

    Raises:
        UserError: One of them is empty, or no text.
    """
    if not isinstance(prompts, str | Iterable) or isinstance(prompts, bytes | Mapping):
        raise UserError(f"prompts: given {prompts!r:.70}, expected texts")
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    for number, prompt in enumerate(listed):
        if not isinstance(prompt, str) or not prompt:
            raise UserError(f"prompts.{number}: given {prompt!r:.70}, expected text")
    return listed
