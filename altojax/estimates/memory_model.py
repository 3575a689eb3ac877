"""Memory and traffic of GPUs under adapter parallelism, by formulas: no device is asked.

`docs/measured/capacity.md` derives every formula; the method is that of ALTO (arXiv 2604.05426), "Rank-local adapter
parallelism".
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from jaxlm.devices.machine import MARGIN
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import adaptable, weights
from jaxlm.quantised.formats import Forms, bytes_of
from pallas_kernels.moments import Kind, bytes_each

COPIES = 3
"""Float32 arrays of an adapter's size in a trial at rest: weights and AdamW's two moments."""
REMATS = ("none", "dots", "full")
"""Choices of rematerialisation, the least first."""
_ADAPTER_BYTES = 4
_ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class BaseBytes:
    """Bytes of a frozen base, by the parts that GPUs gather.

    Attributes:
        layers: Of each layer.
        embedding: Of the tables that tokens and positions are looked up in.
        head: Of the final norm, and of the output head where it is not the embedding table.
        dense: Of the largest layer's matrices as arrays, which exist beside the packed ones; 0 where none is packed.
    """

    layers: tuple[int, ...]
    embedding: int
    head: int
    dense: int = 0

    @property
    def total(self) -> int:
        """Bytes of the whole base."""
        return sum(self.layers) + self.embedding + self.head

    @property
    def gathered(self) -> int:
        """Bytes that exist whole at a time: the layer in use, the next one, and a table."""
        return sum(sorted(self.layers)[-2:]) + max(self.embedding, self.head)


@dataclass(frozen=True)
class Slot:
    """Bytes that a slot adds to a GPU.

    Attributes:
        states: Of the adapter, its moments and its running averages.
        kept: Of what the forward pass keeps for the backward pass.
        working: Of what exists for one layer only, while its backward pass runs.
    """

    states: int
    kept: int
    working: int

    def share(self, part: float) -> "Slot":
        """The same where a GPU holds only `part` of every layer, or that part of the layers."""
        return Slot(*(int(count * part) for count in (self.states, self.kept, self.working)))


def base_of(config: ModelConfig, weight_bytes: int = 2, forms: Forms | None = None) -> BaseBytes:
    """Measures a base by its weights.

    Args:
        config: The model.
        weight_bytes: Of a parameter; 2 for bfloat16.
        forms: Of matrices that are packed.
    """
    layers, embedding, head = [0] * config.num_layers, 0, 0
    dense = [0] * config.num_layers
    for weight in weights(config):
        size = prod(weight.shape) * weight_bytes
        form = (forms or {}).get(weight.path)
        if weight.layers is not None:
            for layer in weight.layers:
                layers[layer] += size if form is None else bytes_of(form) // len(weight.layers)
                dense[layer] += 0 if form is None else size
        elif weight.path.startswith("embed_"):
            embedding += size
        else:
            head += size
    return BaseBytes(tuple(layers), embedding, head, max(dense))


def base_on_gpu(base: BaseBytes, gpus: int) -> int:
    """Bytes of the base on each of `gpus`: its shard, what it has gathered, and what of it is dense.

    What is gathered is never more than the rest of the base, so one GPU holds exactly the base, and where it is packed
    two layers' matrices as arrays.
    """
    shard = -(-base.total // gpus)
    return shard + min(base.gathered, base.total - shard) + 2 * base.dense


def moved_bytes(base_bytes: int, gpus: int) -> int:
    """Bytes that adapter parallelism brings into each GPU in a step: 2·(P−1)/P·bytes(base).

    Every frozen weight is all-gathered in the forward pass and again in the backward pass. Adapters are local, so their
    number does not matter and nothing of their size is reduced.
    """
    return 2 * (gpus - 1) * base_bytes // gpus


def adapter_parameters(config: ModelConfig, rank: int, keys: Collection[str]) -> int:
    """Parameters of one adapter of `rank` on the projections `keys` (``self_attn.q_proj``) of all layers."""
    used = [adaptable(config)[key] for key in keys]
    return rank * sum(len(one.layers) * (one.in_features + one.out_features) for one in used)


def kept_in_layer(config: ModelConfig, rank: int, keys: Collection[str], remat: str) -> int:
    """Bytes of a token that one layer keeps for its backward pass, in bfloat16 and with fused attention.

    Args:
        config: Of layers of one shape.
        rank: Of the adapters.
        keys: Their projections that are adapted; what goes into one is kept for the gradient of its A.
        remat: One of `REMATS`.
    """
    hidden, known = config.hidden_size, adaptable(config)
    opened = sum(one.out_features for one in known.values() if one.inputs == "hidden" and not one.experts)
    if config.routed:
        opened += config.experts + config.active_experts * (2 * config.intermediate_size + hidden)
    if remat == "full":
        return _ACTIVATION_BYTES * hidden
    if remat == "dots":
        ends = 3 if config.post_norms else 2  # x, what attention adds to it, and what the MLP adds if that is normed
        return _ACTIVATION_BYTES * (ends * hidden + opened)
    read = {known[key].reads: known[key] for key in keys if not known[key].experts}  # what goes into adapted ones
    streams = len(config.block_norms) + sum(one.inputs == "hidden" for one in read.values())
    normed = config.q_width + config.kv_width if config.qk_norm else 0
    # What attention returns, or a convolution and its gate: a backward pass needs it, adapted behind it or not.
    mixed = 2 * hidden if config.mixer == "conv" else config.q_width
    product = sum(one.in_features for one in read.values() if one.inputs == "neurons")
    weighed = config.experts + config.active_experts * hidden  # what routers say, and experts make, in float32
    routed = sum(config.active_experts * (one.fan_in + rank) for one in map(known.get, keys) if one and one.experts)
    wide = streams * hidden + normed + opened + mixed + product + weighed + routed + rank * len(keys)
    return _ACTIVATION_BYTES * wide + 4 * config.num_heads  # and float32 sums of the softmax


def state_bytes(optimizer_state: Kind, others: int = 0) -> float:
    """Bytes that a slot holds for each parameter of its adapter.

    Args:
        optimizer_state: How AdamW's moments are kept.
        others: Arrays of the adapter's size beside it and its moments, float32.
    """
    return _ADAPTER_BYTES * (1 + others) + 2 * bytes_each(optimizer_state)


def slot_of(
    config: ModelConfig,
    rank: int,
    keys: Collection[str],
    remat: str,
    tokens: int,
    averages: int = 0,
    optimizer_state: Kind = "float32",
) -> Slot:
    """Bytes of a slot.

    Args:
        config: The model.
        rank: Of its adapter.
        keys: The projections that are adapted.
        remat: One of `REMATS`.
        tokens: Rows times length of the slot's batch on this GPU.
        averages: Running averages of the adapter that it carries.
        optimizer_state: How AdamW's moments are kept.
    """
    parameters = adapter_parameters(config, rank, keys)
    states, adapter = round(parameters * state_bytes(optimizer_state, averages)), _ADAPTER_BYTES * parameters
    kept, working = token_bytes(config, rank, keys, remat)
    # Gradients of the adapter grow while kept activations are freed, so the larger of the two is what exists.
    return Slot(states=states, kept=max(adapter, tokens * kept), working=tokens * working)


def token_bytes(config: ModelConfig, rank: int, keys: Collection[str], remat: str) -> tuple[int, int]:
    """Bytes of a token, as `slot_of` has them: what all layers keep for the backward pass, and what one works on."""
    known, kept, working = adaptable(config), 0, 0
    for name, layers, own in config.stacks:
        inside = [known[key].inside for key in keys if known[key].stack == name]
        of_layer = kept_in_layer(own, rank, inside, remat)
        kept += len(layers) * of_layer
        working = max(working, 2 * kept_in_layer(own, rank, inside, "none") - of_layer)
    around = 2 * _ACTIVATION_BYTES * config.hidden_size  # what goes into the last norm, and the head's gradient
    # A layer works on what is computed again, and gradients of no more than all of it.
    return kept + around, working


def needed_bytes(base_bytes: int, slot: Slot, slots: int, head_bytes: int) -> int:
    """Bytes of a GPU with `slots`; the head's logits and one layer's backward pass do not exist at the same time."""
    return base_bytes + slots * (slot.states + slot.kept) + max(head_bytes, slots * slot.working)


def slots_that_fit(memory_bytes: int, base_bytes: int, slot: Slot, head_bytes: int) -> int:
    """The most slots whose needs a GPU's memory holds, with `jaxlm.devices.machine.MARGIN` left free.

    Args:
        memory_bytes: Of the GPU.
        base_bytes: Of the base on it, see `base_on_gpu`.
        slot: What each slot takes.
        head_bytes: Room for the head's logits, whatever the slots.
    """
    free = int(memory_bytes * (1 - MARGIN)) - base_bytes
    each = slot.states + slot.kept
    return max(0, min((free - head_bytes) // each, free // (each + slot.working)))
