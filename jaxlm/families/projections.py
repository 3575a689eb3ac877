"""Projections of a block, as data: their inputs, the axes of their two sides, and the models that have them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxlm.families.config import ModelConfig

Features = Literal["hidden", "heads", "kv_heads", "channels", "neurons"]
"""The axis of a side of a projection: the residual stream, query heads, key or value heads, channels of a short
convolution, neurons of the MLP."""


@dataclass(frozen=True)
class ProjectionKind:
    """A projection that blocks can have.

    Attributes:
        key: Its path inside the block, such as ``self_attn.q_proj``; its last part is unique.
        inputs: The axis of its inputs. Other than ``hidden``: devices that share those share out its rows.
        outputs: The axes of its outputs, several in a fused projection. Other than ``hidden``: its columns.
        bias: The switch of `ModelConfig` that gives it a bias.
        reads: The activations that it reads together with other projections of one block; empty reads its own.
        where: Switches of `ModelConfig`, and their values in a model that has it, besides its mixer's name.
        parts: Of a fused one, the names of the projections that it is elsewhere, in the order of its outputs.
    """

    key: str
    inputs: Features
    outputs: tuple[Features, ...]
    bias: str
    reads: str = ""
    where: Mapping[str, bool] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The part of the block that holds it: a mixer, as `ModelConfig.mixer` names it, or ``mlp``."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """Its name in that part."""
        return self.key.rpartition(".")[2]

    def in_features(self, config: ModelConfig) -> int:
        """Width of its input."""
        return width_of(self.inputs, config)

    def out_features(self, config: ModelConfig) -> int:
        """Width of its output."""
        return sum(self.out_widths(config))

    def out_widths(self, config: ModelConfig) -> tuple[int, ...]:
        """Width of each part of its output."""
        return tuple(width_of(part, config) for part in self.outputs)


_FUSED, _APART = {"fused_qkv": True}, {"fused_qkv": False}
_DENSE = {"routed": False}
_UP = {"fused_gate_up": False, **_DENSE}
_ATTENTION, _MLP = "attention input", "mlp input"
KINDS = (
    ProjectionKind(
        "self_attn.c_attn",
        "hidden",
        ("heads", "kv_heads", "kv_heads"),
        "qkv_bias",
        where=_FUSED,
        parts=("q_proj", "k_proj", "v_proj"),
    ),
    ProjectionKind("self_attn.q_proj", "hidden", ("heads",), "qkv_bias", _ATTENTION, _APART),
    ProjectionKind("self_attn.k_proj", "hidden", ("kv_heads",), "qkv_bias", _ATTENTION, _APART),
    ProjectionKind(
        "self_attn.v_proj", "hidden", ("kv_heads",), "qkv_bias", _ATTENTION, {**_APART, "keys_are_values": False}
    ),
    ProjectionKind("self_attn.o_proj", "heads", ("hidden",), "o_bias"),
    ProjectionKind("conv.in_proj", "hidden", ("channels",) * 3, "conv_bias"),
    ProjectionKind("conv.out_proj", "channels", ("hidden",), "conv_bias"),
    ProjectionKind(
        "mlp.gate_up_proj",
        "hidden",
        ("neurons", "neurons"),
        "mlp_bias",
        where={"fused_gate_up": True, **_DENSE},
        parts=("gate_proj", "up_proj"),
    ),
    ProjectionKind("mlp.gate_proj", "hidden", ("neurons",), "mlp_bias", _MLP, {"gated_mlp": True, **_UP}),
    ProjectionKind("mlp.up_proj", "hidden", ("neurons",), "mlp_bias", _MLP, _UP),
    ProjectionKind("mlp.down_proj", "neurons", ("hidden",), "mlp_bias", where=_DENSE),
)
"""All of them, in a block's order."""
_EXPERTS_FUSED, _EXPERTS_APART = {"fused_experts": True}, {"fused_experts": False}
EXPERT_KINDS = (
    ProjectionKind("mlp.experts.gate_up_proj", "hidden", ("neurons", "neurons"), "experts_bias", where=_EXPERTS_FUSED),
    ProjectionKind("mlp.experts.gate_proj", "hidden", ("neurons",), "experts_bias", _MLP, _EXPERTS_APART),
    ProjectionKind("mlp.experts.up_proj", "hidden", ("neurons",), "experts_bias", _MLP, _EXPERTS_APART),
    ProjectionKind("mlp.experts.down_proj", "neurons", ("hidden",), "experts_bias"),
)
"""Those of each expert, where blocks have experts."""
EXPERT_TARGETS = (EXPERT_KINDS[0], EXPERT_KINDS[-1])
"""What adapters of experts are on: what opens them, in one even where files hold its halves apart, and what closes
them."""
ROUTER = "mlp.router"
"""Path of the matrix that gives tokens their experts."""
KIND_NAMED = {one.name: one for one in KINDS}


def kinds_of(config: ModelConfig) -> tuple[ProjectionKind, ...]:
    """Returns the projections of a model's blocks, in their order."""
    return tuple(one for one in KINDS if _has(config, one))


def expert_kinds_of(config: ModelConfig) -> tuple[ProjectionKind, ...]:
    """Returns the projections of each expert of a model that has experts."""
    return tuple(one for one in EXPERT_KINDS if config.routed and _has(config, one))


def _has(config: ModelConfig, kind: ProjectionKind) -> bool:
    return kind.part in (config.mixer, "mlp") and all(
        getattr(config, name) == value for name, value in kind.where.items()
    )


def token_parameters(config: ModelConfig) -> int:
    """Returns the parameters of all layers' matrices that each token is multiplied by: of experts, its own alone."""
    return sum(len(stack.layers) * _token_parameters(stack.config) for stack in config.stacks)


def _token_parameters(config: ModelConfig) -> int:
    dense = sum(one.in_features(config) * one.out_features(config) for one in kinds_of(config))
    expert = sum(one.in_features(config) * one.out_features(config) for one in expert_kinds_of(config))
    return dense + config.active_experts * expert + config.experts * config.hidden_size


def width_of(features: Features, config: ModelConfig) -> int:
    """Returns how many features of a kind a model has."""
    widths: dict[Features, int] = {
        "hidden": config.hidden_size,
        "heads": config.q_width,
        "kv_heads": config.kv_width,
        "channels": config.hidden_size,
        "neurons": config.intermediate_size,
    }
    return widths[features]
