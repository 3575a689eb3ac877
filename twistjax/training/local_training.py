"""A worker's steps between two rounds: AdamW on its own subnetwork and rows (TwIST, local training)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlm.models.functional import Functional
from jaxlm.models.head import total_nll
from twistjax.distillation import SoftTargets, likeliest, total_soft_nll
from twistjax.training.gather_scatter import Correction, Weights, corrected
from twistjax.training.units import Units

HEAD_CHUNK = 1024
"""Targets whose logits exist at once, for each worker."""
TOP = 64
"""Likeliest tokens by which a teacher is known."""


class Adam(NamedTuple):
    """AdamW's settings but for its learning rate.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root of the second moment.
        weight_decay: Decoupled, of kernels and embeddings; norms and biases do not decay.
        max_grad_norm: Clips the norm of a worker's gradient; 0 does not.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_grad_norm: float


class Moments(NamedTuple):
    """AdamW's moments, float32 by path like the weights."""

    mu: Weights
    nu: Weights


class Worker(NamedTuple):
    """One worker's subnetwork in training.

    Attributes:
        model: The subnetwork's structure.
        units: The full model's.
        kappa: The share it keeps.
        correction: For what it does not keep.
        adam: Its optimizer.
        taught: Share of its loss that is the divergence from a teacher; 0 has none.
        full: The full model's structure, where that of the round is the teacher, else None.
    """

    model: Functional
    units: Units
    kappa: float
    correction: Correction
    adam: Adam
    taught: float = 0.0
    full: Functional | None = None

    def train(
        self,
        weights: Weights,
        moments: Moments | None,
        before: Int[Array, ""],
        tokens: Int[Array, "steps rows length"],
        targets: Bool[Array, "steps rows length"],
        rates: Float[Array, " steps"],
        soft: SoftTargets | None = None,
        teacher: Weights | None = None,
    ) -> tuple[dict[str, Array], Moments, Float[Array, " steps"]]:
        """Takes local steps.

        Args:
            weights: float32, of the subnetwork.
            moments: To continue from; None starts with zeros.
            before: Steps that the moments have seen.
            tokens: int32; each step's rows.
            targets: Which tokens the loss counts.
            rates: Learning rates.
            soft: What a teacher expects at every token of every step, where one is asked for that is not `full`.
            teacher: The weights of `full`, where there is it.

        Returns:
            Weights, moments, and each step's mean loss in nats per target.
        """
        optimizer = self._optimizer()
        if moments is None:
            moments = Moments(*(jax.tree.map(jnp.zeros_like, dict(weights)) for _ in range(2)))

        def step(carry: Any, batch: Any) -> tuple[Any, Array]:
            weights, state = carry
            tokens, targets, rate, soft = batch
            if self.full is not None:
                assert teacher is not None
                scaled = corrected(teacher, self.units, self.kappa, self.correction, full=True)
                soft = text_likeliest(self.full, scaled, tokens)
            loss, gradients = jax.value_and_grad(self._loss)(weights, tokens, targets, soft)
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an int
                updates, state = optimizer.update(gradients, state, weights)
            weights = jax.tree.map(lambda weight, update: weight - rate * update, weights, updates)
            return (weights, state), loss

        state = optax.tree_utils.tree_set(
            optimizer.init(dict(weights)), count=before, mu=dict(moments.mu), nu=dict(moments.nu)
        )
        (weights, state), losses = jax.lax.scan(step, (dict(weights), state), (tokens, targets, rates, soft))
        found = [optax.tree_utils.tree_get(state, name) for name in ("mu", "nu")]
        return dict(weights), Moments(*found), losses

    def _loss(self, weights: Weights, tokens: Array, targets: Array, soft: SoftTargets | None) -> Array:
        scaled = corrected(weights, self.units, self.kappa, self.correction, full=False)
        total, count = text_nll(self.model, scaled, tokens, targets, soft, self.taught)
        return total / jnp.maximum(count, 1.0)

    def _optimizer(self) -> optax.GradientTransformation:
        adam = self.adam
        clip = optax.clip_by_global_norm(adam.max_grad_norm) if adam.max_grad_norm else optax.identity()
        return optax.chain(
            clip,
            optax.scale_by_adam(adam.beta1, adam.beta2, adam.epsilon),
            optax.add_decayed_weights(adam.weight_decay, {path: decays(path) for path in self.model.shapes}),
        )


def decays(path: str) -> bool:
    """Whether weight decay applies: to kernels and embeddings, not to norms and biases."""
    return path.endswith((".kernel", ".embedding"))


def text_nll(
    model: Functional,
    weights: Weights,
    tokens: Int[Array, "rows length"],
    targets: Bool[Array, "rows length"],
    soft: SoftTargets | None = None,
    taught: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum of negative log likelihoods of the targets, and their number, both float32.

    Args:
        model: The structure.
        weights: By path.
        tokens: int32.
        targets: Which tokens count.
        soft: What a teacher expects after each token.
        taught: Share of the divergence from the teacher; the rest is the likelihood's.
    """
    bound = model.bind(weights)
    hidden = bound(tokens)
    # The last state of a row predicts nothing here, and the loss counts whole chunks of states.
    counted = jnp.pad(targets[:, 1:], ((0, 0), (0, 1))).reshape(-1).astype(jnp.float32)
    wanted = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))).reshape(-1)
    states, chunk = _whole(hidden)
    spare = states.shape[0] - wanted.shape[0]
    wanted, counted = jnp.pad(wanted, (0, spare)), jnp.pad(counted, (0, spare))
    softcap = bound.config.logit_softcap
    if soft is None or not taught:
        total = total_nll(states, bound.head_kernel(), wanted, counted, chunk=chunk, softcap=softcap)
        return total, jnp.sum(counted)
    flat = [jnp.pad(part.reshape(-1, part.shape[-1]), ((0, spare), (0, 0))) for part in soft]
    total = total_soft_nll(
        states, bound.head_kernel(), wanted, SoftTargets(*flat), counted, share=taught, chunk=chunk, softcap=softcap
    )
    return total, jnp.sum(counted)


def text_likeliest(model: Functional, weights: Weights, tokens: Int[Array, "rows length"]) -> SoftTargets:
    """Returns what a model expects after each token: its likeliest ones, [rows, length, top]."""
    bound = model.bind(weights)
    states, chunk = _whole(bound(tokens))
    top = min(TOP, bound.config.vocab_size)
    found = likeliest(states, bound.head_kernel(), top=top, chunk=chunk, softcap=bound.config.logit_softcap)
    return SoftTargets(*(part[: tokens.size].reshape(*tokens.shape, top) for part in found))


def _whole(hidden: Float[Array, "rows length width"]) -> tuple[Float[Array, "states width"], int]:
    """Returns the states of all rows, filled up to whole chunks, and the size of a chunk."""
    states = hidden.reshape(-1, hidden.shape[-1])
    chunk = min(HEAD_CHUNK, states.shape[0])
    return jnp.pad(states, ((0, -states.shape[0] % chunk), (0, 0))), chunk
