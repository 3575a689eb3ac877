"""One description of every decoder here. Switches, not a class per family."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from jaxlm.families.rope import RopeConfig

LAYERS = "layers"
"""The stack of most layers; names of all others end by it."""
FIRST, LAST = "first_layers", "last_layers"
"""Stacks of layers at both ends that are wider than those between, as pruned models have them."""


@dataclass(frozen=True)
class OtherLayers:
    """Layers of another shape than most of a model's.

    Attributes:
        name: Of the attribute of `Transformer` that holds them.
        layers: Which layers of the model they are, in rising order.
        changes: Fields of `ModelConfig` that are others for them, with their values.
    """

    name: str
    layers: tuple[int, ...]
    changes: tuple[tuple[str, Any], ...]


class LayerStack(NamedTuple):
    """Layers of one shape.

    Attributes:
        name: Of the attribute of `Transformer` that holds them.
        layers: Which layers of the model they are, in rising order.
        config: Of these layers alone.
    """

    name: str
    layers: tuple[int, ...]
    config: "ModelConfig"


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of a decoder-only transformer.

    Attributes:
        family: One of `jaxlm.families.registry.FAMILIES`; decides the names of the weights, never the computation.
        vocab_size: Rows of the embedding table.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the MLP.
        num_layers: Blocks.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head; need not be ``hidden_size / num_heads``.
        max_position: Longest row in tokens; the size of the table where positions are learned.
        norm: ``rms`` or ``layer``.
        norm_bias: Whether ``layer`` norms add a bias, too.
        norm_eps: Added under the root.
        norm_offset: Added to every norm's scale (Gemma: 1).
        activation: ``silu`` or ``gelu_tanh``.
        gated_mlp: ``down(act(gate(x)) * up(x))`` rather than ``down(act(up(x)))``.
        qkv_bias: Bias on the query, key and value projections.
        o_bias: Bias on the attention's output projection.
        mlp_bias: Bias on the MLP's projections.
        fused_qkv: One ``c_attn`` projection holding q | k | v.
        fused_gate_up: One ``gate_up_proj`` holding gate | up.
        positions: ``rope`` or ``learned``.
        rope: Rotary positions (of the full-attention layers).
        rope_local: Rotary positions of the sliding layers, where they differ.
        rope_interleaved: The pairs of a head that rotate together are neighbours, not half a head apart.
        rope_pattern: Per layer, whether it rotates; None is every layer.
        qk_norm: RMSNorm over each query and key head before the rotation.
        v_norm: The same of values, without a scale.
        keys_are_values: Values are what keys are before their norm, and have no projection.
        wide_qk_norm: `qk_norm` over all query heads together, and over all key heads.
        pre_norms: Norm what attention and MLP read of the residual stream.
        parallel: Attention and MLP read the same, behind one norm.
        post_norms: Norm what attention and MLP add to the residual stream.
        sliding_window: A query sees this many newest keys, itself included; None is all.
        sliding_pattern: Per layer, whether the window applies; None is every layer.
        embed_scale: Multiplies the embeddings.
        attention_scale: Multiplies the attention scores; None is ``head_dim ** -0.5``.
        query_growth: Queries are multiplied by 1 + this * log(1 + context lengths before stretching that lie before).
        residual_scale: Multiplies what attention and MLP add to the residual stream.
        layer_scale: Each layer multiplies what it makes of the residual stream by a number of its own.
        logit_scale: Multiplies the logits.
        attention_softcap: Bends scores towards this bound, by a hyperbolic tangent; None is no bound.
        logit_softcap: Likewise of logits.
        tie_embeddings: The output head is the embedding table.
        bos_id: Token that begins a text, if any.
        eos_ids: Tokens that end a text.
        pad_id: Padding token, if any.
        whole: Model type of the multimodal model of which this is the text half: adapters are named in it.
        experts: MLPs of a layer, of `intermediate_size` each, of which a router gives every token its own; 0 is one MLP
            for all tokens.
        active_experts: Experts that a token meets.
        norm_experts: What the router gives a token's experts adds up to 1.
        experts_bias: Bias on the router and on the experts' projections.
        fused_experts: One ``gate_up_proj`` of every expert, whose columns are gate and up in turn.
        swiglu_limit: Experts make ``(up + 1) * gate * sigmoid(swiglu_alpha * gate)``, of gate up to this bound and up
            within it; None is the activation of gate, times up.
        swiglu_alpha: As above.
        attention_sinks: A score of each head takes part in its softmax, and has no value.
        mixer: What mixes the tokens of a text, by its name in a block: ``self_attn``, or ``conv``, a short convolution,
            whose layers have 0 heads.
        conv_taps: Tokens that a short convolution reads, the newest included.
        conv_bias: Bias on it and on its projections.
        others: Layers of other shapes; `num_layers` counts them, all else is of the rest.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm: str = "rms"
    norm_bias: bool = True
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    positions: str = "rope"
    rope: RopeConfig = field(default_factory=RopeConfig)
    rope_local: RopeConfig | None = None
    rope_interleaved: bool = False
    rope_pattern: tuple[bool, ...] | None = None
    qk_norm: bool = False
    v_norm: bool = False
    keys_are_values: bool = False
    wide_qk_norm: bool = False
    pre_norms: bool = True
    parallel: bool = False
    post_norms: bool = False
    sliding_window: int | None = None
    sliding_pattern: tuple[bool, ...] | None = None
    embed_scale: float = 1.0
    attention_scale: float | None = None
    query_growth: float = 0.0
    residual_scale: float = 1.0
    layer_scale: bool = False
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    whole: str = ""
    experts: int = 0
    active_experts: int = 0
    norm_experts: bool = True
    experts_bias: bool = False
    fused_experts: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    attention_sinks: bool = False
    mixer: str = "self_attn"
    conv_taps: int = 0
    conv_bias: bool = False
    others: tuple[OtherLayers, ...] = ()

    def __post_init__(self) -> None:
        """Checks the layers of other shapes.

        Raises:
            ValueError: One is none of the model's, or they leave none.
        """
        others = [layer for one in self.others for layer in one.layers]
        if len(set(others)) < len(others) or not set(others) < set(range(self.num_layers)):
            raise ValueError(f"layers {others} of {self.num_layers} are of other shapes; expected some, and each once")

    @cached_property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layers of one shape each: all of them, where none has another."""
        others = {layer for one in self.others for layer in one.layers}
        found = [self._stack(LAYERS, tuple(layer for layer in range(self.num_layers) if layer not in others))]
        found += [self._stack(one.name, one.layers, **dict(one.changes)) for one in self.others if one.layers]
        return tuple(sorted(found, key=lambda stack: stack.layers))

    def _stack(self, name: str, layers: tuple[int, ...], **changes: Any) -> LayerStack:
        patterns = {"sliding_pattern": self.sliding_pattern, "rope_pattern": self.rope_pattern}
        own = {key: pattern and tuple(pattern[layer] for layer in layers) for key, pattern in patterns.items()}
        return LayerStack(name, layers, replace(self, num_layers=len(layers), others=(), **{**own, **changes}))

    @property
    def ends(self) -> tuple[int, int]:
        """Layers at the start and at the end that are wider than those between."""
        counts = {one.name: len(one.layers) for one in self.others}
        return counts.get(FIRST, 0), counts.get(LAST, 0)

    @property
    def routed(self) -> bool:
        """Whether layers have experts."""
        return self.experts > 0

    @property
    def block_norms(self) -> tuple[str, ...]:
        """Names of the norms of the residual stream in a block, in Hugging Face's words."""
        if self.parallel:
            return ("input_layernorm",)
        before = ("input_layernorm", "pre_feedforward_layernorm" if self.post_norms else "post_attention_layernorm")
        after = ("post_attention_layernorm", "post_feedforward_layernorm")
        return (before if self.pre_norms else ()) + (after if self.post_norms else ())

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together."""
        return self.num_kv_heads * self.head_dim


def wide_ends(config: ModelConfig, first: int, last: int, **shape: int) -> ModelConfig:
    """Returns a model whose ends have another shape.

    Args:
        config: The model.
        first: Layers at its start.
        last: Layers at its end.
        **shape: What of it the ends have otherwise: ``num_heads``, ``num_kv_heads``, ``intermediate_size``.
    """
    changes, layers = tuple(shape.items()), tuple(range(config.num_layers))
    parts = ((FIRST, layers[:first]), (LAST, layers[config.num_layers - last :]))
    return replace(config, others=tuple(OtherLayers(name, own, changes) for name, own in parts if own))
