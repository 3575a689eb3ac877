"""A family of models: reader and writer of its config.json, its names of weights, its place in GGUF."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxlm.families.config import ModelConfig
from jaxlm.families.gguf import GGUFFormat
from jaxlm.families.settings import Settings


@dataclass(frozen=True)
class Family:
    """A family of models; docs/extend/family.md adds one.

    Attributes:
        name: Of it here, and of its module in transformers.
        model_type: Its ``model_type`` in config.json.
        causal_lm: Its class in transformers.
        read: Reads config.json; what holds for every model is checked afterwards.
        write: The keys of config.json that `read` reads, but for those that all families write alike.
        example: A tiny model that uses every switch the family has; for tests and dry runs.
        keys: Keys of config.json that it spells otherwise than Llama: Llama's -> its own.
        computes: Of `jaxlm.files.unread_keys.ONE_VALUE`, the settings that it computes for any value.
        idle: Keys of its class in transformers that `read` may leave unread: they change nothing that is computed.
        relatives: Model types that look like it and are not, each with its message.
        wholes: Multimodal model types of which it is the text half, each with that half's own model type.
        prefix: In front of the names of all weights but the head's.
        layers: In front of the names in a layer, behind `prefix`.
        modules: Names of modules, where other than the paths inside `Transformer` and its blocks: path -> name.
        transposed: Whether files hold projections as [out, in]; Conv1D of transformers does not.
        heads: What is asked of the heads: by transformers that they ``divide`` the width or ``fill`` it, by readers who
            take the width over the heads for a head's that they ``share`` it; or nothing.
        config_class: In transformers; empty is the class's own.
        gguf: Its storage in GGUF; None where GGUF does not know it, or under another family's name.
    """

    name: str
    model_type: str
    causal_lm: str
    read: Callable[[Settings], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    example: ModelConfig
    keys: Mapping[str, str] = field(default_factory=dict)
    computes: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    relatives: Mapping[str, str] = field(default_factory=dict)
    wholes: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    layers: str = "layers.{i}."
    modules: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = True
    heads: Literal["any", "divide", "fill", "share"] = "any"
    config_class: str = ""
    gguf: GGUFFormat | None = None

    def module(self, path: str) -> str:
        """Returns Hugging Face's path of a module, such as ``norm``; the head has no prefix."""
        return self.prefix + self.modules.get(path, path)

    def module_in_layer(self, path: str) -> str:
        """Returns Hugging Face's path, with ``{i}`` for the layer, of a module of a block, such as ``mlp.up_proj``."""
        return self.prefix + self.layers + self.modules.get(path, path)


def example(name: str, **switches: Any) -> ModelConfig:
    """Returns a tiny model of a family.

    Args:
        name: Of the family.
        **switches: Fields of `ModelConfig`.
    """
    shapes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position": 512,
        "bos_id": 1,
        "eos_ids": (2,),
        "pad_id": 0,
    }
    return ModelConfig(name, **{**shapes, **switches})
