"""The `model` section of a config: which model, and how it is computed."""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jax.typing import DTypeLike

from harness.config import StrictModel

KERNEL_STEPS = 4000
"""Training steps in which fused adapter kernels win back the 20 s longer that each of a few shapes takes to compile."""
IN_PLACE_STEPS = 12000
"""Training steps in which layers compiled in their place win back another minute and more for each (docs/log.md)."""


class ModelSpec(StrictModel):
    """A model to train or to train on.

    Attributes:
        model_name_or_path: A Hugging Face folder, a .gguf file or a hub id.
        dtype: Of the computation; auto is bfloat16 on an accelerator and float32 on a CPU. What is trained is float32.
        remat: What the backward pass computes again to save memory: ``none``, ``dots`` (all but products) or ``full``
            (every block); auto is the least with which a step fits.
        scan_layers: Compile one block for all layers; false compiles each in its place, which takes longer and stacks
            nothing for the backward pass; null is false on a GPU for long runs, unless remat is ``full``.
        random_init: Random weights of the config's shape; for dry runs.
        trust_remote_code: Lets a hub tokenizer run its own code.
    """

    model_name_or_path: str = pydantic.Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    scan_layers: bool | None = None
    random_init: bool = False
    trust_remote_code: bool = False

    foreign_names: ClassVar[dict[str, str]] = {
        "base_model": "model_name_or_path",
        "model": "model_name_or_path",
        "name": "model_name_or_path",
        "torch_dtype": "dtype",
        "gradient_checkpointing": "remat",
    }


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
    """What the backward pass of a step computes again.

    Attributes:
        remat: As `backbone.transformer.Transformer` has it.
        scan_layers: Likewise.
    """

    remat: str
    scan_layers: bool


def remat_choices(spec: ModelSpec, steps: int | None = None) -> list[Remat]:
    """What the backward pass may compute again, the least first; auto leaves the choice to what fits.

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
