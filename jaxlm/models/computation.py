"""Chooses what the `model` section leaves open: dtype, rematerialisation, layers compiled once or each in its place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxlm.models.spec import ModelSpec


def compute_dtype(spec: ModelSpec) -> DTypeLike:
    """The dtype of the computation; auto is float32 on a CPU, else bfloat16."""
    if spec.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.float32 if spec.dtype == "float32" else jnp.bfloat16


def scans_layers(spec: ModelSpec, remat: str) -> bool:
    """Whether one compiled block serves all layers, where only the speed of steps matters.

    Null is no on a GPU, where writing what a scan stacks for the backward pass takes long, but for ``full``, which
    leaves little to stack.

    Args:
        spec: The model.
        remat: What the backward pass computes again.
    """
    if spec.scan_layers is None:
        return remat == "full" or jax.default_backend() != "gpu"
    return spec.scan_layers


class Remat(NamedTuple):
    """Rematerialisation in the backward pass of a step.

    Attributes:
        remat: As `jaxlm.models.transformer.Transformer` has it.
        scan_layers: Likewise.
    """

    remat: str
    scan_layers: bool


def remat_choices(spec: ModelSpec) -> list[Remat]:
    """Choices of rematerialisation, the least first; auto leaves the choice to what fits."""
    names: tuple[str, ...] = ("none", "dots", "full") if spec.remat == "auto" else (spec.remat,)
    return [Remat(name, scans_layers(spec, name)) for name in names]
