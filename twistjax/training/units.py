"""Units of a subnetwork: heads and blocks of MLP neurons, how many are kept, and which worker gets which.

A unit of attention is a query head with its own key head. Where several query heads share one, it is the whole KV
group if every kappa of the run keeps a whole number of groups, and else a query head within each group, so that groups
stay of one size. A unit of the MLP is a block of neurons. Every layer has as many units, and every subnetwork of one
kappa keeps as many of them: shapes are static. Protected layers, at both ends, are everybody's as a whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxlm.families.config import FIRST, LAST, ModelConfig, wide_ends
from jaxrun.process.errors import UserError


class Kept(NamedTuple):
    """Indices that a subnetwork keeps of every layer that is not protected; workers may be stacked in front.

    They ascend, but for subnetworks by importance: those of a smaller one are the first of a larger one's.

    Attributes:
        heads: int32 [layers, kept query heads].
        kv_heads: int32 [layers, kept KV heads].
        neurons: int32 [layers, kept neurons].
    """

    heads: Int[Array, "layers heads"]
    kv_heads: Int[Array, "layers kv_heads"]
    neurons: Int[Array, "layers neurons"]


@dataclass(frozen=True)
class Units:
    """The units of a layer.

    Attributes:
        config: The full model.
        block: Neurons of an MLP block.
        in_groups: Whether the units of attention are query heads within each KV group, rather than whole groups.
        first: Layers at the start that are protected.
        last: Layers at the end that are.
    """

    config: ModelConfig
    block: int
    in_groups: bool
    first: int = 0
    last: int = 0

    @property
    def layers(self) -> int:
        """Layers between the protected ones."""
        return self.depth - self.first - self.last

    @property
    def depth(self) -> int:
        """Layers of the full model, but for wide ends that it may have itself, which are shared."""
        return self.config.num_layers - sum(self.config.ends)

    @property
    def group(self) -> int:
        """Query heads of a KV group."""
        return self.config.num_heads // self.config.num_kv_heads

    @property
    def heads(self) -> int:
        """Units of attention: the groups, or the query heads of each group."""
        return self.group if self.in_groups else self.config.num_kv_heads

    @property
    def rows(self) -> int:
        """Rows of units of attention in a layer: the groups, within each of which heads are kept, or one."""
        return self.config.num_kv_heads if self.in_groups else 1

    @property
    def blocks(self) -> int:
        """Units of the MLP."""
        return self.config.intermediate_size // self.block

    def shares(self, kappa: float) -> tuple[float, float]:
        """Returns the shares of attention and MLP that a subnetwork really keeps, which are at least kappa."""
        return kept_of(self.heads, kappa) / self.heads, kept_of(self.blocks, kappa) / self.blocks

    def subnetwork(self, kappa: float) -> ModelConfig:
        """Returns the shapes of a subnetwork: a smaller dense model of the same family, with wide ends if protected."""
        whole = self.config
        kept = kept_of(self.heads, kappa)
        kv_heads = self.config.num_kv_heads if self.in_groups else kept
        heads = kv_heads * (kept if self.in_groups else self.group)
        inner = self.block * kept_of(self.blocks, kappa)
        shape: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "intermediate_size": inner}
        wide = {name: getattr(whole, name) for name in shape}
        found = wide_ends(whole, self.first, self.last, **wide) if self.first or self.last else whole
        return replace(found, **shape)

    def deal(self, key: PRNGKeyArray, kappas: Sequence[float]) -> list[Kept]:
        """Assigns the units of every layer to workers: shuffled, then in turn, cyclically.

        Every worker gets exactly as many distinct units as its kappa keeps, and every unit has a holder.

        Args:
            key: Of this round; the same key assigns the same.
            kappas: The share that each worker keeps.

        Raises:
            UserError: Together the workers cannot hold every unit.
        """
        check_coverage(kappas)
        return self._hands(key, kappas)

    def draw(self, key: PRNGKeyArray, kappa: float) -> Kept:
        """Returns a random subnetwork, a ticket: as a single worker's, whoever holds the rest."""
        return self._hands(key, [kappa])[0]

    def _hands(self, key: PRNGKeyArray, kappas: Sequence[float]) -> list[Kept]:
        of_heads, of_blocks = jax.random.split(key)
        heads, blocks = (
            jnp.broadcast_to(jnp.arange(units, dtype=jnp.int32), (self.layers, *rows, units))
            for units, rows in ((self.heads, (self.rows,)), (self.blocks, ()))
        )
        of = around(of_heads, heads, [kept_of(self.heads, kappa) for kappa in kappas])
        inner = around(of_blocks, blocks, [kept_of(self.blocks, kappa) for kappa in kappas])
        return [self.kept(jnp.sort(own), jnp.sort(part)) for own, part in zip(of, inner, strict=True)]

    def kept(self, heads: Int[Array, "layers rows kept"], blocks: Int[Array, "layers kept"]) -> Kept:
        """Returns the indices of the members of units.

        Args:
            heads: int32; groups, in one row, or query heads within each group, in a row for each.
            blocks: int32.
        """
        every = jnp.arange(self.config.num_kv_heads, dtype=jnp.int32)
        if self.in_groups:
            kv_heads = jnp.broadcast_to(every[None, :], (self.layers, every.shape[0]))
            return Kept(_members(every[None, :, None], self.group, heads), kv_heads, self._neurons(blocks))
        kv_heads = heads[:, 0]
        return Kept(self._whole(kv_heads, self.group), kv_heads, self._neurons(blocks))

    def _neurons(self, blocks: Int[Array, "layers kept"]) -> Int[Array, "layers neurons"]:
        return self._whole(blocks, self.block)

    @staticmethod
    def _whole(units: Int[Array, "layers kept"], size: int) -> Int[Array, "layers members"]:
        """Returns all members of units of `size`."""
        return _members(units[:, :, None], size, jnp.arange(size, dtype=jnp.int32)[None, None, :])


def units_of(
    config: ModelConfig, kappas: Sequence[float], block: int | None = None, protected: tuple[int, int] = (0, 0)
) -> Units:
    """Returns the units of a model for a run of these kappas.

    Args:
        config: The full model.
        kappas: Shares that subnetworks keep.
        block: Neurons of an MLP block; None is 64, or what of it divides the MLP.
        protected: Layers at the start and at the end that are everybody's as a whole.

    Raises:
        UserError: A kappa is not in (0, 1], the MLP cannot be cut into such blocks, every layer is protected, heads are
            normed together, or layers have experts or several shapes.
    """
    if config.routed:
        raise UserError(f"model: {config.family} is a mixture of {config.experts} experts, expected a dense model")
    if {one.name for one in config.others} - {FIRST, LAST}:
        raise UserError(f"model: layers of {config.family} are of several shapes, expected a family of one")
    if config.wide_qk_norm:
        raise UserError(
            f"model: {config.family} norms all heads' queries together, so that a head cannot go without changing the "
            "others; expected a family whose heads are independent"
        )
    for kappa in kappas:
        if not 0 < kappa <= 1:
            raise UserError(f"kappa: given {kappa:g}, expected a share above 0 and up to 1")
    block = math.gcd(config.intermediate_size, 64) if block is None else block
    if block < 1 or config.intermediate_size % block:
        raise UserError(f"block: given {block}, expected a divisor of the MLP's {config.intermediate_size} neurons")
    if min(protected) < 0 or sum(protected) >= config.num_layers or (any(protected) and any(config.ends)):
        given = " + ".join(map(str, protected))
        raise UserError(f"protected: given {given} layers, expected fewer than the model's {config.num_layers}")
    shares = [round(kappa * config.num_kv_heads, 9) for kappa in kappas]
    whole = all(share >= 1 and share == round(share) for share in shares)
    return Units(config, block, config.num_heads != config.num_kv_heads and not whole, *protected)


def kept_of(units: int, kappa: float) -> int:
    """Returns ⌈kappa · units⌉; what floating point adds to a whole number does not count."""
    return max(1, math.ceil(round(kappa * units, 9)))


def check_coverage(kappas: Sequence[float]) -> None:
    """Refuses workers that cannot hold every unit between them.

    Raises:
        UserError: Their kappas add up to less than one.
    """
    total = round(sum(kappas), 9)
    if total < 1:
        needed = math.ceil(round(len(kappas) / total, 9))
        raise UserError(
            f"workers: given {len(kappas)}, whose kappas add up to {total:g}, so that some units have no holder; "
            f"expected at least {needed} workers of such kappas"
        )


def around(key: PRNGKeyArray, units: Int[Array, "*rows n"], counts: Sequence[int]) -> list[Int[Array, "*rows count"]]:
    """Assigns units, shuffled in every row apart, cyclically: to each worker as many as its count."""
    every = units.shape[-1]
    order = jax.random.permutation(key, units, axis=-1, independent=True)
    hands, first = [], 0
    for count in counts:
        at = jnp.asarray([(first + i) % every for i in range(count)], jnp.int32)
        hands.append(order[..., at])
        first += count
    return hands


def _members(
    units: Int[Array, "#layers units #members"], size: int, inside: Int[Array, "#layers #units members"]
) -> Int[Array, "layers all"]:
    """Returns the indices of members of units of `size`, unit by unit."""
    members = units * jnp.int32(size) + inside
    return members.reshape(members.shape[0], -1)
