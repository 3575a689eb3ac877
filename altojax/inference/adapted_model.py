"""A base with any number of adapters on it, for inference: each row of a batch picks one, or none."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter, read_adapter
from altojax.device.batch import TokenRow
from altojax.device.executor import Executor, StaticPlan
from altojax.device.multi_lora import Routing
from altojax.inference.model_source import ModelSource
from jaxlm.data import bucket_length, default_buckets
from jaxlm.data.chat.chat_templates import with_template
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.files.tokenizer import end_tokens, load_tokenizer
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models.generate import generate
from jaxlm.models.spec import compute_dtype
from jaxlm.models.transformer import Transformer
from jaxrun.process.errors import UserError

BASE = 0
"""The slot that stays empty: rows there see the base alone."""


@dataclass(frozen=True)
class Sampling:
    """How text is made; see `jaxlm.models.generate.generate`.

    Attributes:
        max_new_tokens: Most tokens of a completion.
        temperature: 0 takes the likeliest token.
        top_p: Draw among the likeliest that reach this probability.
        top_k: Draw among this many likeliest; 0 is all.
        seed: Of the draws.
        batch_size: Prompts at once.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 16


class AdaptedModel:
    """The base in slot 0, adapter i in slot i + 1; the same layers, kernels and losses as in training."""

    def __init__(self, model: Transformer, adapters: Sequence[tuple[AdapterSpec, Adapter]], *, longest: int = 1024):
        """Adapts `model` in place.

        Args:
            model: A base without adapters.
            adapters: Of any ranks, on any projections.
            longest: Tokens of the longest row that `losses` is going to see.
        """
        known = projections(model.config)
        used = {key for spec, _ in adapters for key in spec.modules} or {next(iter(known))}
        self._scales = [0.0, *(spec.scale for spec, _ in adapters)]
        plan = StaticPlan(
            slots=len(self._scales),
            rank=max((spec.rank for spec, _ in adapters), default=1),
            projections={key: one for key, one in known.items() if key in used},
            lengths=default_buckets(longest),
            accumulates=False,
            drops=False,
            packed=False,
        )
        self._executor = Executor(model, plan)
        for slot, (spec, adapter) in enumerate(adapters, start=1):
            arrays = {key: {"a": a, "b": b} for key, (a, b) in adapter.items()}
            still = {key: {"a": np.zeros_like(a), "b": np.zeros_like(b)} for key, (a, b) in adapter.items()}
            snapshot = {"adapters": arrays, "mu": still, "nu": still, "gathered": still, "steps": 0}
            self._executor.put(slot, snapshot, {"scale": spec.scale})

    @property
    def slots(self) -> int:
        """One for the base, one for each adapter."""
        return len(self._scales)

    @property
    def model(self) -> Transformer:
        """The model with its adapters; call it with `routing`."""
        frozen = self._executor.frozen
        return nnx.merge(frozen.graph, self._executor.state.adapters, frozen.weights)

    def routing(self, slots: Sequence[int]) -> Routing:
        """Returns what sends row i of a batch to slot ``slots[i]``."""
        return Routing(jnp.asarray(slots, jnp.int32), jnp.asarray(self._scales, jnp.float32))

    def losses(
        self, rows: Sequence[TokenRow], *, rows_at_once: int = 16, done: Callable[[int], None] | None = None
    ) -> list[float]:
        """Returns the mean loss over all targets of `rows`, in nats, of every slot.

        Args:
            rows: The same for all.
            rows_at_once: Of a batch.
            done: Told how many rows of all slots have been evaluated so far.
        """
        found = self._executor.evaluate([(slot, rows) for slot in range(self.slots)], rows_at_once, done=done)
        return [found[slot] for slot in range(self.slots)]

    def complete(
        self,
        prompts: Sequence[np.ndarray],
        slot: int,
        sampling: Sampling,
        *,
        eos_ids: Sequence[int],
        made_some: Callable[[int], None] = lambda count: None,
    ) -> list[np.ndarray]:
        """Continues prompts with one slot's adapter.

        Args:
            prompts: int32 [length] each.
            slot: `BASE` or an adapter's.
            sampling: How.
            eos_ids: Tokens that end a text.
            made_some: Called with the number of prompts completed, whenever it grows.

        Returns:
            The new tokens of each prompt, up to its first end token.

        Raises:
            UserError: A prompt and its new tokens are more than the model has positions for.
        """
        model, limit = self.model, self._executor.config.max_position
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
                routing=self.routing([slot] * len(rows)),
            )
            for i, tokens in zip(members, np.asarray(new), strict=False):
                ends = np.flatnonzero(np.isin(tokens, eos_ids))
                made[i] = tokens[: ends[0]] if ends.size else tokens
            made_some(len(made))
        return [made[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class Loaded:
    """A base with its adapters, ready to run.

    Attributes:
        adapted: The model.
        config: The base's shapes.
        tokenizer: The base's.
        names: Of the slots: ``base``, then each adapter's.
        ends: Tokens that end what the adapters have learnt to write.
    """

    adapted: AdaptedModel
    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    ends: tuple[int, ...]

    def eos_ids(self, taught: Iterable[int] = ()) -> tuple[int, ...]:
        """Returns the tokens that end a text: those learnt, those that rows teach, the model's and the tokenizer's."""
        return end_tokens([*self.ends, *taught], self.config.eos_ids, self.tokenizer)


def load_adapted(source: ModelSource, *, longest: int = 1024) -> Loaded:
    """Loads a base and puts its adapters on; adapters are read before the base's weights.

    Raises:
        UserError: Base or adapter cannot be read, or they do not fit.
    """
    spec = source.model
    name = spec.model_name_or_path
    config = read_model_config(name, weights=not spec.random_init)
    tokenizer = load_tokenizer(name, trust_remote_code=spec.trust_remote_code)
    if source.written is not None:
        tokenizer = with_template(tokenizer, source.written.chat_template)
    adapters = [read_adapter(folder, config) for folder in source.adapters.values()]
    _, model = load_model(name, dtype=compute_dtype(spec), random_init=spec.random_init, seed=source.seed)
    names = ("base", *source.adapters)
    return Loaded(AdaptedModel(model, adapters, longest=longest), config, tokenizer, names, source.ends)
