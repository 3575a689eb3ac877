"""Hugging Face's names for the weights and projections of each family."""

from dataclasses import dataclass

from jaxlm.families.config import ModelConfig


@dataclass(frozen=True)
class Projection:
    """A projection of the block, one a layer.

    Attributes:
        key: Its path inside `Transformer.layers`, such as ``self_attn.q_proj``.
        hf: Its Hugging Face module path with ``{i}`` for the layer.
        in_features: Width of its input.
        out_features: Width of its output.
        bias: Whether it has one.
    """

    key: str
    hf: str
    in_features: int
    out_features: int
    bias: bool


@dataclass(frozen=True)
class Weight:
    """A weight file's entry and the Variable it fills.

    Attributes:
        path: Of the Variable in `Transformer`, such as ``layers.self_attn.q_proj.kernel``.
        hf: Key in a safetensors file, with ``{i}`` for the layer where there is one.
        shape: Of one layer's share of the Variable.
        transposed: Whether the file holds the transpose.
        layers: The layers that the Variable stacks along its leading axis; None where it has no such axis.
    """

    path: str
    hf: str
    shape: tuple[int, ...]
    transposed: bool = False
    layers: range | None = None

    @property
    def entries(self) -> range:
        """Numbers for ``{i}``, one for each entry of a file."""
        return range(1) if self.layers is None else self.layers


def projections(config: ModelConfig) -> dict[str, Projection]:
    """Every projection of a block, by its path inside the block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = "transformer.h.{i}." if config.family == "gpt2" else "model.layers.{i}."
    found: dict[str, Projection] = {}

    def add(key: str, gpt2_name: str, in_features: int, out_features: int, bias: bool) -> None:
        name = gpt2_name if config.family == "gpt2" else key
        found[key] = Projection(key, layer + name, in_features, out_features, bias)

    if config.fused_qkv:
        add("self_attn.c_attn", "attn.c_attn", hidden, config.q_width + 2 * config.kv_width, config.qkv_bias)
    else:
        add("self_attn.q_proj", "attn.q_proj", hidden, config.q_width, config.qkv_bias)
        add("self_attn.k_proj", "attn.k_proj", hidden, config.kv_width, config.qkv_bias)
        add("self_attn.v_proj", "attn.v_proj", hidden, config.kv_width, config.qkv_bias)
    add("self_attn.o_proj", "attn.c_proj", config.q_width, hidden, config.o_bias)
    if config.gated_mlp:
        add("mlp.gate_proj", "mlp.gate_proj", hidden, inner, config.mlp_bias)
    add("mlp.up_proj", "mlp.c_fc", hidden, inner, config.mlp_bias)
    add("mlp.down_proj", "mlp.c_proj", inner, hidden, config.mlp_bias)
    return found


def weights(config: ModelConfig) -> list[Weight]:
    """Every weight of a model, in the order Hugging Face lists them."""
    gpt2 = config.family == "gpt2"
    hidden = (config.hidden_size,)
    base = "transformer." if gpt2 else "model."
    table = (config.vocab_size, config.hidden_size)
    found = [Weight("embed_tokens.embedding", base + ("wte.weight" if gpt2 else "embed_tokens.weight"), table)]
    if config.positions == "learned":
        places = (config.max_position, config.hidden_size)
        found.append(Weight("embed_positions.embedding", base + "wpe.weight", places))
    for name, layers, own in config.stacks:
        for projection in projections(own).values():
            path, hf = f"{name}.{projection.key}", projection.hf
            shape: tuple[int, ...] = (projection.in_features, projection.out_features)
            found.append(Weight(f"{path}.kernel", f"{hf}.weight", shape, not gpt2, layers))
            if projection.bias:
                found.append(Weight(f"{path}.bias", f"{hf}.bias", shape[1:], layers=layers))
        for path, hf, shape in _layer_norms(own):
            found.append(Weight(f"{name}.{path}.scale", f"{hf}.weight", shape, layers=layers))
            if config.norm == "layer":
                found.append(Weight(f"{name}.{path}.bias", f"{hf}.bias", shape, layers=layers))
    final = base + ("ln_f" if gpt2 else "norm")
    found.append(Weight("norm.scale", f"{final}.weight", hidden))
    if config.norm == "layer":
        found.append(Weight("norm.bias", f"{final}.bias", hidden))
    if not config.tie_embeddings:
        found.append(Weight("lm_head.embedding", "lm_head.weight", table))
    return found


def _layer_norms(config: ModelConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """Path inside the block, Hugging Face path and shape of each norm of a block."""
    hidden, head = (config.hidden_size,), (config.head_dim,)
    if config.family == "gpt2":
        layer = "transformer.h.{i}."
        return [("input_layernorm", layer + "ln_1", hidden), ("post_attention_layernorm", layer + "ln_2", hidden)]
    paths = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if config.post_norms:
        paths += [("pre_feedforward_layernorm", hidden), ("post_feedforward_layernorm", hidden)]
    if config.qk_norm:
        paths += [("self_attn.q_norm", head), ("self_attn.k_norm", head)]
    return [(path, "model.layers.{i}." + path, shape) for path, shape in paths]
