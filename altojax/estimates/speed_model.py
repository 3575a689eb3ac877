"""Speed of a cluster that tunes many adapters, by formulas: adapter parallelism and its alternatives.

Every function is arithmetic on numbers; `docs/measured/capacity.md` states the formulas, what they leave
out and their sources.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from altojax.estimates.memory_model import REMATS, base_of, base_on_gpu, moved_bytes, slot_of, slots_that_fit
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import adaptable
from jaxlm.families.projections import token_parameters

_ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class ClusterModel:
    """GPUs and what joins them.

    Attributes:
        peak: Of a GPU, dense bfloat16 FLOP/s.
        mfu: Share of it that a step with many tokens reaches.
        half_tokens: Tokens of a GPU with which half of that share is reached.
        memory_bytes: Of a GPU.
        head_bytes: Of it, room for the logits of a chunk of targets.
        node: GPUs that NVLink joins.
        within: Bytes a second into a GPU within a node.
        across: Bytes a second into a GPU's own network adapter.
        hidden: Share of a gather's time that computing beside it hides: the speed at which a GPU computes meanwhile.
    """

    peak: float
    mfu: float
    half_tokens: float
    memory_bytes: int
    head_bytes: int
    node: int
    within: float
    across: float
    hidden: float

    def bandwidth(self, gpus: int) -> float:
        """Bytes a second into each of `gpus`; across nodes, a node's network adapters share what it receives."""
        return self.within if gpus <= self.node else min(self.within, self.node * self.across)

    def compute_s(self, flops: float, tokens: float) -> float:
        """Seconds that a GPU computes on `tokens` at a time: read every weight, then use it."""
        return flops / (self.mfu * self.peak) * (1 + self.half_tokens / tokens)


@dataclass(frozen=True)
class AdapterLoad:
    """Adapters to tune.

    Attributes:
        config: The model.
        rank: Of every adapter.
        keys: The projections that are adapted.
        rows: Of an adapter's batch.
        length: Of a row in tokens; all are targets.
        trials: Adapters that wait to be tuned.
    """

    config: ModelConfig
    rank: int
    keys: tuple[str, ...]
    rows: int
    length: int
    trials: int


@dataclass(frozen=True)
class PredictedSpeed:
    """The predicted speed of a way of tuning.

    Attributes:
        group: GPUs that work together.
        adapters: Trained at once.
        busiest: Adapters of the GPU that has the most.
        remat: What the backward pass computes again.
        tokens: Of a step, all GPUs.
        step_s: Seconds of a step.
        compute_s: Of them, seconds in which the busiest GPU computes.
        moved: Bytes into each GPU in a step.
    """

    group: int
    adapters: int
    busiest: int
    remat: str
    tokens: int
    step_s: float
    compute_s: float
    moved: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all GPUs."""
        return self.tokens / self.step_s


Way = Callable[[AdapterLoad, ClusterModel, int, str], PredictedSpeed | None]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a token: a mean layer's two passes, and one of the head's two products."""

    forward: float
    backward: float
    head: float

    def total(self, layers: int) -> float:
        """Of the whole step."""
        return layers * (self.forward + self.backward) + 2 * self.head


def flops_of(job: AdapterLoad, remat: str) -> Flops:
    """Counts a token's operations; the frozen base needs no gradients of its own, so 4·N rather than 6·N."""
    config, known = job.config, adaptable(job.config)
    products = 2 * token_parameters(config) / config.num_layers
    # Of experts a token meets its own alone.
    met = [(known[key], config.active_experts / known[key].experts if known[key].experts else 1.0) for key in job.keys]
    sides = sum(share * len(one.layers) * (one.in_features + one.out_features) for one, share in met)
    adapters = 2 * job.rank * sides / config.num_layers
    heads = sum(len(layers) * own.q_width for _, layers, own in config.stacks) / config.num_layers
    attention = 2 * job.length * heads  # QK and PV, of the causal half
    forward = products + attention + adapters
    again = {"none": 0, "dots": attention, "full": forward}[remat]
    backward = products + 2.5 * attention + 2 * adapters + again
    return Flops(forward, backward, 2 * config.vocab_size * config.hidden_size)


def overlapped(stages: Sequence[tuple[float, float]], hidden: float) -> float:
    """Seconds of (gather, compute) stages, each gathered while the one before it computes, as far as that is hidden.

    Args:
        stages: In their order; nothing hides the first gather.
        hidden: As in `ClusterModel`.
    """
    following = [gather for gather, _ in stages[1:]] + [0.0]
    return stages[0][0] + sum(
        max(gather, compute + (1 - hidden) * gather) for (_, compute), gather in zip(stages, following, strict=True)
    )


def gathered_step_s(job: AdapterLoad, cluster: ClusterModel, gpus: int, remat: str, tokens: int) -> float:
    """Seconds of a step of `tokens` on the busiest GPU that gathers the base layer by layer, forward and backward."""
    base, flops = base_of(job.config), flops_of(job, remat)

    def gather(size: int) -> float:
        return size * (gpus - 1) / gpus / cluster.bandwidth(gpus)

    forward, backward, head = (
        cluster.compute_s(tokens * of, tokens) for of in (flops.forward, flops.backward, flops.head)
    )
    there = [(gather(base.embedding), 0.0), *((gather(one), forward) for one in base.layers), (gather(base.head), head)]
    back = [(gather(base.head), head), *((gather(one), backward) for one in reversed(base.layers))]
    return overlapped([*there, *back, (gather(base.embedding), 0.0)], cluster.hidden)


def adapter_parallel(job: AdapterLoad, cluster: ClusterModel, gpus: int, remat: str) -> PredictedSpeed | None:
    """The base sharded and gathered; each GPU holds whole adapters and their rows (ALTO)."""
    base, tokens = base_of(job.config), job.rows * job.length
    slot = slot_of(job.config, job.rank, job.keys, remat, tokens)
    fit = slots_that_fit(cluster.memory_bytes, base_on_gpu(base, gpus), slot, cluster.head_bytes)
    adapters = min(job.trials, fit * gpus)
    if not adapters:
        return None
    busiest = ceil(adapters / gpus)
    step_s = gathered_step_s(job, cluster, gpus, remat, busiest * tokens)
    compute_s = cluster.compute_s(busiest * tokens * flops_of(job, remat).total(len(base.layers)), busiest * tokens)
    moved = moved_bytes(base.total, gpus)
    return PredictedSpeed(gpus, adapters, busiest, remat, adapters * tokens, step_s, compute_s, moved)


def fsdp_of_one(job: AdapterLoad, cluster: ClusterModel, gpus: int, remat: str) -> PredictedSpeed | None:
    """The base sharded and gathered; the rows of one adapter spread over the GPUs."""
    base, tokens = base_of(job.config), ceil(job.rows / gpus) * job.length
    slot = slot_of(job.config, job.rank, job.keys, remat, tokens)
    fit = slots_that_fit(cluster.memory_bytes, base_on_gpu(base, gpus), slot, cluster.head_bytes)
    if not min(job.trials, fit):
        return None
    step_s = gathered_step_s(job, cluster, gpus, remat, tokens)
    compute_s = cluster.compute_s(tokens * flops_of(job, remat).total(len(base.layers)), tokens)
    return PredictedSpeed(gpus, 1, 1, remat, job.rows * job.length, step_s, compute_s, moved_bytes(base.total, gpus))


def tensor_parallel(job: AdapterLoad, cluster: ClusterModel, gpus: int, remat: str, most: int) -> PredictedSpeed | None:
    """Every layer split over the GPUs, which reduce two sums of the residual stream a layer and pass (Megatron-LM)."""
    config, base = job.config, base_of(job.config)
    if config.num_heads % gpus:
        return None
    slot = slot_of(config, job.rank, job.keys, remat, job.rows * job.length).share(1 / gpus)
    fit = slots_that_fit(cluster.memory_bytes, -(-base.total // gpus), slot, cluster.head_bytes)
    adapters = min(job.trials, fit, most)
    if not adapters:
        return None
    tokens = adapters * job.rows * job.length
    compute_s = cluster.compute_s(tokens * flops_of(job, remat).total(config.num_layers) / gpus, tokens)
    sums = config.num_layers * (6 if remat == "full" else 4)
    moved = sums * 2 * (gpus - 1) * tokens * config.hidden_size * _ACTIVATION_BYTES // gpus
    step_s = compute_s + moved / cluster.bandwidth(gpus)
    return PredictedSpeed(gpus, adapters, adapters, remat, tokens, step_s, compute_s, moved)


def pipeline_parallel(
    job: AdapterLoad, cluster: ClusterModel, gpus: int, remat: str, most: int
) -> PredictedSpeed | None:
    """Consecutive layers on each GPU; the rows go through in the number of micro-batches that is fastest (GPipe)."""
    config, base = job.config, base_of(job.config)
    depth = ceil(config.num_layers / gpus)
    stages = ceil(config.num_layers / depth)
    part = depth / config.num_layers
    ends = base.total - sum(base.layers) if stages == 1 else max(base.embedding, base.head)
    slot = slot_of(config, job.rank, job.keys, remat, job.rows * job.length).share(part)
    fit = slots_that_fit(cluster.memory_bytes, depth * max(base.layers) + ends, slot, cluster.head_bytes)
    adapters = min(job.trials, fit, most)
    if not adapters:
        return None
    rows = adapters * job.rows
    tokens = rows * job.length
    one = flops_of(job, remat).total(config.num_layers) * part

    def seconds(batches: int) -> float:
        return (batches + stages - 1) * cluster.compute_s(tokens / batches * one, tokens / batches)

    batches = min((count for count in range(1, rows + 1) if rows % count == 0), key=seconds)
    busy_s = batches * cluster.compute_s(tokens / batches * one, tokens / batches)
    moved = 2 * tokens * config.hidden_size * _ACTIVATION_BYTES if stages > 1 else 0
    return PredictedSpeed(gpus, adapters, adapters, remat, tokens, seconds(batches), busy_s, moved)


OURS = "adapter parallel"
WAYS: dict[str, Way] = {
    OURS: adapter_parallel,
    "FSDP, one adapter": fsdp_of_one,
    "tensor, one adapter": partial(tensor_parallel, most=1),
    "tensor, many adapters": partial(tensor_parallel, most=sys.maxsize),
    "pipeline, one adapter": partial(pipeline_parallel, most=1),
    "pipeline, many adapters": partial(pipeline_parallel, most=sys.maxsize),
}


def best(
    way: str, job: AdapterLoad, cluster: ClusterModel, gpus: int, remats: Sequence[str] = REMATS
) -> PredictedSpeed | None:
    """The fastest plan over what the backward pass may compute again; the least again where two are as fast."""
    plans = [plan for remat in remats if (plan := WAYS[way](job, cluster, gpus, remat)) is not None]
    return max(plans, key=lambda plan: plan.tokens_per_s, default=None)


def best_in_groups(
    way: str, job: AdapterLoad, cluster: ClusterModel, gpus: int, remats: Sequence[str] = REMATS
) -> tuple[float, int] | None:
    """Splits GPUs and trials evenly into groups that know nothing of each other.

    Returns:
        Tokens a second of all groups and the GPUs of a group, of the fastest size and the smallest where several are;
        None where nothing fits any.
    """
    found = []
    for size in (size for size in range(1, gpus + 1) if gpus % size == 0):
        each, more = divmod(job.trials, gpus // size)
        shares = [(more, each + 1), (gpus // size - more, each)]
        plans = [(groups, best(way, replace(job, trials=share), cluster, size, remats)) for groups, share in shares]
        found.append((sum(groups * plan.tokens_per_s for groups, plan in plans if plan is not None), size))
    fastest = max(found, key=lambda one: one[0])
    return fastest if fastest[0] else None
