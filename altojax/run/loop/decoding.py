"""Answers of trials in slots: their prompts are continued greedily, rows of all slots in the same batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Array, Int

from altojax.device.executor import Executor
from altojax.device.multi_lora.routing import Routing
from jaxlm.data.answers import OpenQuestions
from jaxlm.data.batching.buckets import bucket_length, default_buckets
from jaxlm.families.config import ModelConfig
from jaxlm.models.block import cache_shapes
from jaxlm.models.generate import Prompts, continued
from jaxlm.models.transformer import Transformer
from jaxrun.process.interrupt import StopAsked, stop_if

MOST_ROWS = 256
"""Rows of a device in a batch: more make a step of one token no shorter for each."""
_COPIES = 3
"""Of a cache, at most, while a token is made: before it, after it, and that of a layer in float32."""


@dataclass(frozen=True)
class _Row:
    slot: int
    number: int
    tokens: np.ndarray
    prompts: OpenQuestions


class Decoding:
    """Greedy decoding with the adapters in an executor's slots.

    All rows share one program for each length of prompts; each row meets its own slot's adapter, on a cache of keys and
    values, and ends at its own end token or limit.
    """

    def __init__(self, executor: Executor, prompts: Sequence[OpenQuestions], room_bytes: int):
        """Compiles nothing yet.

        Args:
            executor: Has the slots.
            prompts: All that is going to be asked.
            room_bytes: Of a device, beside what stays from step to step.
        """
        self._executor = executor
        self._new = max(one.max_new_tokens for one in prompts)
        self._ends = max(1, *(len(one.ends) for one in prompts))
        longest = max(len(tokens) for one in prompts for tokens in one.tokens)
        self._longest = min(longest, executor.config.max_position - self._new)
        self._rows = max(1, min(MOST_ROWS, room_bytes // row_bytes(executor.config, self._longest, self._new)))
        self._continue = executor.of_rows(self._answer)

    def answers(
        self,
        due: Sequence[tuple[int, OpenQuestions]],
        *,
        average: int | None = None,
        asked: StopAsked | None = None,
    ) -> dict[int, list[np.ndarray]]:
        """Answers prompts with the adapters in slots.

        Args:
            due: Slots, and what to answer with each.
            average: Index of the window whose running average answers; None is the adapters themselves.
            asked: Asks it to stop.

        Returns:
            int32 [new] of each prompt in turn, by slot: its new tokens, up to its first end token.

        Raises:
            Stopped: It was asked to.
        """
        dealt = self._deal(due)
        most = max(map(len, dealt))
        found: dict[int, list[np.ndarray]] = {slot: [np.zeros(0, np.int32)] * len(one) for slot, one in due}
        rows = self._batch_rows(most)
        for first in range(0, most, rows):
            stop_if(asked)
            parts = [own[first : first + rows] for own in dealt]
            made = np.asarray(self._continue(self._batch(parts, rows), average, asked))
            for device, part in enumerate(parts):
                for at, row in enumerate(part):
                    new = made[device * rows + at, : row.prompts.max_new_tokens]
                    stops = np.flatnonzero(np.isin(new, row.prompts.ends))
                    found[row.slot][row.number] = new[: stops[0]] if stops.size else new
        return found

    def _answer(
        self, build: Callable[[], Transformer], scale: Array, rows: tuple[Array, ...]
    ) -> Int[Array, "rows new"]:
        slots, *prompts = rows
        over = self._executor.sharding.collectives.on_all
        routing = Routing(slots, scale)
        return continued(build, Prompts(*prompts), max_new_tokens=self._new, routing=routing, none_goes_on=over)

    def _deal(self, due: Sequence[tuple[int, OpenQuestions]]) -> list[list[_Row]]:
        """Returns each device's rows, the longest first, group by group and replica by replica."""
        sharding = self._executor.sharding
        by_group: list[list[_Row]] = [[] for _ in range(sharding.groups)]
        for slot, prompts in due:
            by_group[sharding.group(slot)] += [_Row(slot, i, one, prompts) for i, one in enumerate(prompts.tokens)]
        for own in by_group:
            own.sort(key=lambda row: -len(row.tokens))
        return [own[replica :: sharding.replicas] for own in by_group for replica in range(sharding.replicas)]

    def _batch_rows(self, wanted: int) -> int:
        """Returns the rows of a device's batches: where compiling is cheap, few for few."""
        if self._executor.programs.expensive("eval"):
            return self._rows
        return min(self._rows, 1 << (wanted - 1).bit_length())

    def _batch(self, parts: Sequence[Sequence[_Row]], rows: int) -> tuple[np.ndarray, ...]:
        """Lays out a batch: slots, then the fields of `Prompts`."""
        sharding, whole = self._executor.sharding, rows * len(parts)
        longest = max(len(row.tokens) for part in parts for row in part)
        length = bucket_length(longest, default_buckets(self._longest))
        tokens, lengths = np.zeros((whole, length), np.int32), np.zeros(whole, np.int32)
        slots, most = np.zeros(whole, np.int32), np.ones(whole, np.int32)
        ends = np.full((whole, self._ends), -1, np.int32)
        for device, part in enumerate(parts):
            for at, row in enumerate(part, device * rows):
                tokens[at, : len(row.tokens)], lengths[at] = row.tokens, len(row.tokens)
                slots[at], most[at] = row.slot % sharding.own_slots, row.prompts.max_new_tokens
                ends[at, : len(row.prompts.ends)] = row.prompts.ends
        return slots, tokens, lengths, ends, most


def row_bytes(config: ModelConfig, prompt: int, new: int) -> int:
    """Returns the memory that a row of a batch takes, at most, while it is continued.

    Args:
        config: The base.
        prompt: Tokens of the longest prompt.
        new: Tokens that may follow it.
    """
    cached = prompt + new
    cache = sum(prod(shape) for shapes in cache_shapes(config, 1, cached) for shape in shapes)
    queries = cached if config.rope.grows(cached) else prompt
    scores = 2 * queries * cached * max(one.num_heads for _, _, one in config.stacks)
    widest = max(one.intermediate_size for _, _, one in config.stacks) + config.hidden_size
    widest *= max(config.active_experts, 1)
    return 4 * (_COPIES * cache + scores + 4 * queries * widest + 2 * config.vocab_size)
