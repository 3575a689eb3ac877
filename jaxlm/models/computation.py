"""Chooses what the `model` section leaves open: dtype, rematerialisation, layers compiled once or each in its place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxlm.models.spec import ModelSpec

KERNEL_STEPS = 4000
"""Training steps in which fused adapter kernels win back the 20 s longer that each of a few shapes takes to compile."""
IN_PLACE_STEPS = 12000
"""Training steps in which layers compiled in place win back a minute and more for each shape (docs/measured/log.md)."""


def compute_dtype(spec: ModelSpec) -> DTypeLike:
    """The dtype of the computation; auto is float32 on a CPU, else bfloat16."""
    if spec.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.float32 if spec.dtype == "float32" else jnp.bfloat16


def scans_layers(spec: ModelSpec, remat: str, steps: int | None = None) -> bool:
    """Whether one compiled block serves all layers.

    Null is no on a GPU, where writing what a scan stacks for the backward pass takes long, but for ``full``, which
    leaves little to stack, and for runs of fewer than `IN_PLACE_STEPS` training steps.

    Args:
        spec: The model.
        remat: What the backward pass computes again.
        steps: Training steps of the run, where they are known.
    """
    if spec.scan_layers is None:
        return remat == "full" or jax.default_backend() != "gpu" or _is_short(steps)
    return spec.scan_layers


class Remat(NamedTuple):
    """Rematerialisation in the backward pass of a step.

    Attributes:
        remat: As `jaxlm.models.transformer.Transformer` has it.
        scan_layers: Likewise.
    """

    remat: str
    scan_layers: bool


def remat_choices(spec: ModelSpec, steps: int | None = None) -> list[Remat]:
    """Choices of rematerialisation, the least first; auto leaves the choice to what fits.

    On a GPU one scanned layer is fastest with ``full``, which takes less time than writing what the others stack: a
    short run, which scans, has no other choice.

    Args:
        spec: The model.
        steps: Training steps of the run, where they are known.
    """
    names: tuple[str, ...] = ("none", "dots", "full") if spec.remat == "auto" else (spec.remat,)
    if spec.remat == "auto" and jax.default_backend() == "gpu" and scans_layers(spec, "none", steps):
        names = ("full",)
    return [Remat(name, scans_layers(spec, name, steps)) for name in names]


def _is_short(steps: int | None) -> bool:
    return steps is not None and steps < IN_PLACE_STEPS
