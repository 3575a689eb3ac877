"""The decoder: embeddings, stacks of blocks, the final norm. Every family is this one file."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxlm.devices.mesh import MeshAxes
from jaxlm.families.config import ModelConfig
from jaxlm.families.rope import rope_angles
from jaxlm.families.schedule import rotations, schedule
from jaxlm.models.block import Block, cache_shapes, stream_norm
from jaxlm.models.head import softcapped
from jaxlm.models.layers import Embedding
from jaxlm.models.mixers.mixer import Positions
from jaxlm.models.mixers.row_texts import RowTexts
from jaxlm.models.run_layers import REMAT_POLICIES, Cache, LayerRun, run_layers


class Transformer(nnx.Module):
    """A decoder with Hugging Face's names.

    Attributes:
        embed_tokens: ``[vocab, width]``.
        embed_positions: ``[max_position, width]``, where positions are learned.
        layers: One `Block` whose Variables carry a leading ``[layer]`` axis. Any projection in it may be replaced by a
            module with the same call and stacked Variables of any type: loops carry whatever they find. Layers of
            another shape are further ones, by the names of `ModelConfig.stacks`.
        norm: The final norm; what multiplies the logits multiplies its outputs instead.
        lm_head: ``[vocab, width]``, where the head is not tied.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.bfloat16,
        param_dtype: DTypeLike = jnp.bfloat16,
        remat: str = "none",
        scan_layers: bool = True,
        mesh_axes: MeshAxes | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds random weights.

        Args:
            config: Shapes and switches.
            dtype: Of the computation; norms, softmax and rotation are float32 regardless.
            param_dtype: Of the weights.
            remat: What the backward pass recomputes: ``none``, ``full`` (every block) or ``dots`` (all but products).
            scan_layers: Layers that repeat are compiled once, rather than each layer in its place, which takes longer
                to compile and stacks nothing for the backward pass.
            mesh_axes: The mesh that the model is called inside of, where its weights are one device's part; `config` is
                then `jaxlm.devices.mesh.MeshLayout.local_config`.
            rngs: Source of the weights.

        Raises:
            ValueError: `remat` is none of these.
        """
        if remat != "none" and remat not in REMAT_POLICIES:
            raise ValueError(f"remat={remat!r}; expected one of none, {', '.join(REMAT_POLICIES)}")
        self.config, self.dtype, self.remat, self.scan_layers, self.mesh_axes = (
            config,
            dtype,
            remat,
            scan_layers,
            mesh_axes,
        )
        kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, **kinds)
        if config.positions == "learned":
            self.embed_positions = Embedding(config.max_position, config.hidden_size, **kinds)
        self.layers: Block
        for stack in config.stacks:
            setattr(self, stack.name, Block(stack.config, layers=stack.config.num_layers, mesh_axes=mesh_axes, **kinds))
        self.norm = stream_norm(config, param_dtype, None, gain=config.logit_scale)
        if not config.tie_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, **kinds)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        texts: RowTexts | None = None,
        routing: Any = None,
    ) -> Float[Array, "batch length width"]:
        """Hidden states after the final norm, in the compute dtype.

        Args:
            tokens: int32, padded on the right.
            texts: Where texts lie in rows that they share: a token sees earlier ones of its own text only. None is one
                text a row.
            routing: Passed on to every projection of every layer.

        Raises:
            ValueError: Rows longer than the table of learned positions.
        """
        length, learned = tokens.shape[1], self.config.positions == "learned"
        if texts is not None:
            positions = texts.positions(length)
            # Padding goes on counting; there are as many positions as a text may have.
            positions = jnp.minimum(positions, self.config.max_position - 1) if learned else positions
        elif learned and length > self.config.max_position:
            raise ValueError(f"rows of {length} tokens, but there are {self.config.max_position} positions")
        else:
            positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], tokens.shape)
        return self.norm(self.run_layers(self.embed(tokens, positions), self.places(positions, texts), routing)[0])

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        cache: Cache,
        routing: Any = None,
        lengths: Int[Array, "batch"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Cache]:
        """Runs new tokens on top of a cache of the tokens before them.

        Args:
            tokens: int32.
            positions: int32, of each row one after the other; also where in the cache the new keys and values go.
            cache: From `empty_cache` or an earlier call.
            routing: Passed on to every projection.
            lengths: int32, tokens of each row's text so far; None is up to the last of its positions.

        Returns:
            Hidden states after the final norm, and the cache with the new tokens in it.
        """
        places = self.places(positions, None, None if lengths is None else lengths[:, None])
        places = places._replace(ends=positions[:, -1] + 1 if lengths is None else lengths)
        x, extended = self.run_layers(self.embed(tokens, positions), places, routing, cache)
        return self.norm(x), extended

    def run_layers(
        self, x: Float[Array, "batch length width"], places: Positions, routing: Any = None, cache: Cache = ()
    ) -> tuple[Float[Array, "batch length width"], Cache]:
        """Runs `x` through all layers.

        Args:
            x: From `embed`.
            places: From `places`.
            routing: Passed on to every projection.
            cache: As of `extend`; nothing outside generation.
        """
        blocks = [nnx.split(getattr(self, stack.name)) for stack in self.config.stacks]
        how = LayerRun(self.config, self.dtype, self.remat, self.mesh_axes)
        return run_layers(how, schedule(self.config, repeats=self.scan_layers), blocks, x, (places, routing), cache)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for what every stack keeps of tokens, in the compute dtype; see `cache_shapes`."""
        stacks = cache_shapes(self.config, batch, length)
        return tuple(tuple(jnp.zeros(shape, self.dtype) for shape in shapes) for shapes in stacks)

    def head_kernel(self) -> Float[Array, "vocab width"]:
        """The output head, tied or not, in the dtype of the weights."""
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        return head.embedding[...] if self.mesh_axes is None else self.mesh_axes.table(head.embedding[...])

    def logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """The logits of hidden states after the final norm, in their dtype at least."""
        head = self.head_kernel().astype(hidden.dtype)
        return softcapped(hidden @ head.T, self.config.logit_softcap)

    def embed(
        self, tokens: Int[Array, "batch length"], positions: Int[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """The input of the first layer, in the compute dtype."""
        x = self._look_up(self.embed_tokens, tokens)
        if self.config.embed_scale != 1.0:
            x = x * jnp.asarray(self.config.embed_scale, self.dtype)
        return x + self._look_up(self.embed_positions, positions) if self.config.positions == "learned" else x

    def places(
        self,
        positions: Int[Array, "batch length"],
        texts: RowTexts | None,
        lengths: Int[Array, "batch #length"] | None = None,
    ) -> Positions:
        """Positions of tokens for every layer.

        Args:
            positions: int32, counted from each text's own beginning.
            texts: As in `Positions`.
            lengths: int32, tokens of the text that each token is of; None is what `texts` say, or up to the last of a
                row's positions. They matter to ``dynamic`` and ``longrope`` alone.
        """
        found = rotations(self.config)
        if not any(rope.by_length for rope, _ in found):
            lengths = None
        elif lengths is None and texts is not None:
            lengths = texts.lengths(positions.shape[1])
        elif lengths is None:
            lengths = jnp.max(positions, axis=1, keepdims=True) + 1
        angles = tuple(rope_angles(rope, head_dim, positions, lengths) for rope, head_dim in found)
        return Positions(positions, angles, texts)

    def _look_up(self, table: Embedding, indices: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        if self.mesh_axes is None:
            return table(indices)
        return jnp.take(self.mesh_axes.table(table.embedding[...]), indices, axis=0).astype(self.dtype)
