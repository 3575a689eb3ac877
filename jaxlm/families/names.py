"""Projections and weights of a model, with Hugging Face's names for them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxlm.families.config import LAYERS, LayerStack, ModelConfig
from jaxlm.families.family import Family
from jaxlm.families.projections import EXPERT_TARGETS, ROUTER, Features, expert_kinds_of, kinds_of
from jaxlm.families.registry import family_of

TEXT_HALF = "model.language_model."
"""In front of the names of the text half in the classes of transformers that hold a tower beside it."""


@dataclass(frozen=True)
class Projection:
    """A projection of the block, one a layer.

    Attributes:
        stack: The stack of the layers that have it.
        layers: Those layers.
        inside: Its path inside the block, such as ``self_attn.q_proj``.
        hf: Its Hugging Face module path with ``{i}`` for the layer; of a multimodal model's text half, in the whole. Of
            experts, the path of the parameter.
        in_features: Width of its input; of experts, of all of theirs.
        out_features: Width of its output, likewise.
        bias: Whether it has one.
        inputs: The axis of its input.
        outputs: The axis of its output, part by part.
        reads: The activations that it reads; projections that read the same ones share them.
        experts: Matrices that it is, one an expert; 0 for one that every token meets.
    """

    stack: str
    layers: tuple[int, ...]
    inside: str
    hf: str
    in_features: int
    out_features: int
    bias: bool
    inputs: Features
    outputs: tuple[Features, ...]
    reads: str
    experts: int = 0

    @property
    def path(self) -> str:
        """Its path inside `Transformer`."""
        return f"{self.stack}.{self.inside}"

    @property
    def key(self) -> str:
        """Its path inside `Transformer.layers`; of layers of another shape with their stack in front."""
        return self.path.removeprefix(f"{LAYERS}.")

    @property
    def fan_in(self) -> int:
        """Width of the input of each of its matrices."""
        return self.in_features // max(self.experts, 1)

    def empty_adapter(
        self, rank: int
    ) -> tuple[Float[np.ndarray, "layer in rank"], Float[np.ndarray, "layer rank out"]]:
        """Returns A and B of an adapter of zeros, float32."""
        layers = len(self.layers)
        a, b = (layers, self.in_features, rank), (layers, rank, self.out_features)
        return np.zeros(a, np.float32), np.zeros(b, np.float32)


@dataclass(frozen=True)
class Weight:
    """A weight file's entry and the Variable it fills.

    Attributes:
        path: Of the Variable in `Transformer`, such as ``layers.self_attn.q_proj.kernel``.
        hf: Key in a safetensors file, with ``{i}`` for the layer and ``{e}`` for the expert where there are any.
        shape: Of one layer's share of the Variable, whose first axis is the experts where there are any.
        transposed: Whether the file holds the transpose; of experts, that of each.
        layers: The layers that the Variable stacks along its leading axis; None where it has no such axis.
        experts: Of each layer, where the file holds each of theirs by itself; else 0.
    """

    path: str
    hf: str
    shape: tuple[int, ...]
    transposed: bool = False
    layers: tuple[int, ...] | None = None
    experts: int = 0

    def keys(self, layer: int) -> list[str]:
        """Returns the keys that hold a layer's share: one, or one for each expert."""
        return [self.hf.format(i=layer, e=expert) for expert in range(max(self.experts, 1))]

    @property
    def entries(self) -> tuple[int, ...]:
        """Numbers for ``{i}``."""
        return (0,) if self.layers is None else self.layers


def projections(config: ModelConfig) -> dict[str, Projection]:
    """Every projection of the blocks, by its key."""
    found = [one for stack in config.stacks for one in _projections(stack, family_of(config), config.whole)]
    return {one.key: one for one in found}


def _projections(stack: LayerStack, family: Family, whole: str = "") -> list[Projection]:
    return [
        Projection(
            stack.name,
            stack.layers,
            one.key,
            _in_whole(family, family.module_in_layer(one.key)) if whole else family.module_in_layer(one.key),
            one.in_features(stack.config),
            one.out_features(stack.config),
            getattr(stack.config, one.bias),
            one.inputs,
            one.outputs,
            one.reads or one.key,
        )
        for one in kinds_of(stack.config)
    ]


def expert_projections(config: ModelConfig) -> dict[str, Projection]:
    """What adapters of the blocks' experts are on, by its key, under the names of transformers 5."""
    family, count = family_of(config), config.experts
    found = [
        Projection(
            stack.name,
            stack.layers,
            one.key,
            family.prefix + family.layers + one.key,
            count * one.in_features(stack.config),
            count * one.out_features(stack.config),
            config.experts_bias,
            one.inputs,
            one.outputs,
            one.key,
            count,
        )
        for stack in config.stacks
        for one in (EXPERT_TARGETS if config.routed else ())
    ]
    return {one.key: one for one in found}


def adaptable(config: ModelConfig) -> dict[str, Projection]:
    """Every projection that an adapter can be on, those of experts last."""
    return projections(config) | expert_projections(config)


def _in_whole(family: Family, module: str) -> str:
    return TEXT_HALF + module.removeprefix(family.prefix)


def weights(config: ModelConfig) -> list[Weight]:
    """Every weight of a model, in the order Hugging Face lists them."""
    family = family_of(config)
    hidden = (config.hidden_size,)
    table = (config.vocab_size, config.hidden_size)
    found = [Weight("embed_tokens.embedding", family.module("embed_tokens") + ".weight", table)]
    if config.positions == "learned":
        places = (config.max_position, config.hidden_size)
        found.append(Weight("embed_positions.embedding", family.module("embed_positions") + ".weight", places))
    for stack in config.stacks:
        name, layers, own = stack
        for projection in _projections(stack, family):
            path, hf = projection.path, projection.hf
            shape: tuple[int, ...] = (projection.in_features, projection.out_features)
            found.append(Weight(f"{path}.kernel", f"{hf}.weight", shape, family.transposed, layers))
            if projection.bias:
                found.append(Weight(f"{path}.bias", f"{hf}.bias", shape[1:], layers=layers))
        if config.routed:
            found += _expert_weights(family, own, name, layers)
        if config.attention_sinks:
            hf = family.module_in_layer("self_attn.sinks")
            found.append(Weight(f"{name}.self_attn.sinks", hf, (own.num_heads,), layers=layers))
        if own.mixer == "conv":
            hf, shape = family.module_in_layer("conv.conv"), (own.hidden_size, 1, own.conv_taps)
            found.append(Weight(f"{name}.conv.conv.weight", f"{hf}.weight", shape, layers=layers))
            if own.conv_bias:
                found.append(Weight(f"{name}.conv.conv.bias", f"{hf}.bias", shape[:1], layers=layers))
        if config.layer_scale:
            found.append(
                Weight(f"{name}.layer_scale.scale", family.module_in_layer("layer_scale"), (1,), layers=layers)
            )
        for norm, shape in _layer_norms(own):
            hf = family.module_in_layer(norm)
            found.append(Weight(f"{name}.{norm}.scale", f"{hf}.weight", shape, layers=layers))
            if config.norm == "layer" and config.norm_bias:
                found.append(Weight(f"{name}.{norm}.bias", f"{hf}.bias", shape, layers=layers))
    final = family.module("norm")
    found.append(Weight("norm.scale", f"{final}.weight", hidden))
    if config.norm == "layer" and config.norm_bias:
        found.append(Weight("norm.bias", f"{final}.bias", hidden))
    if not config.tie_embeddings:
        found.append(Weight("lm_head.embedding", "lm_head.weight", table))
    return found


def _expert_weights(family: Family, config: ModelConfig, stack: str, layers: tuple[int, ...]) -> list[Weight]:
    """Returns the router's weights and those of the experts, in a file each by itself or all as one tensor."""
    router, count = family.module_in_layer(ROUTER), config.experts
    found = [Weight(f"{stack}.{ROUTER}.kernel", f"{router}.weight", (config.hidden_size, count), True, layers)]
    if config.experts_bias:
        found.append(Weight(f"{stack}.{ROUTER}.bias", f"{router}.bias", (count,), layers=layers))
    for one in expert_kinds_of(config):
        hf, path = family.module_in_layer(one.key), f"{stack}.{one.key}"
        apart = "{e}" in hf
        names = (f"{hf}.weight", f"{hf}.bias") if apart else (hf, f"{hf}_bias")
        files, shape = count if apart else 0, (count, one.in_features(config), one.out_features(config))
        found.append(Weight(f"{path}.kernel", names[0], shape, apart, layers, files))
        if config.experts_bias:
            found.append(Weight(f"{path}.bias", names[1], (count, shape[2]), False, layers, files))
    return found


def _layer_norms(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Path inside the block and shape of each norm of a block."""
    paths: list[tuple[str, tuple[int, ...]]] = [(name, (config.hidden_size,)) for name in config.block_norms]
    if config.qk_norm:
        queries, keys = (config.q_width, config.kv_width) if config.wide_qk_norm else (config.head_dim,) * 2
        paths += [("self_attn.q_norm", (queries,)), ("self_attn.k_norm", (keys,))]
    return paths
