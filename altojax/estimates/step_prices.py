"""Predicted seconds of a step, by measurements in docs/measured/log.md: alternatives are chosen by these.

No clock is read: a run that is interrupted and resumed chooses the same.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import jax

from altojax.estimates.memory_model import adapter_parameters, token_bytes
from jaxlm.families.config import ModelConfig
from jaxlm.families.projections import token_parameters
from jaxlm.models.computation import Remat
from pallas_kernels import skips_padding

STEP_S = 0.025
"""Seconds that a GPU's steps of 30 layers take whatever their tokens."""
COPIED_S, PASSES = 3 / 4e12, {"none": 2, "dots": 2, "full": 3}
"""Seconds for a byte of scanned layers' weights, which every pass of fused kernels takes out of their stacks first: it
is read, written and read again, as fast as an H200 copies. Of 8 B a step takes 58 ms by this and 70 measured."""
TOKEN_S, TRAINING_FLOPS = 2.2e-6, 5e14
"""A GPU trains a token in the first seconds, which bound small models, and its operations at the second rate, half of
an H100's peak: with fused kernels and layers in place 100,000 tokens a second of 1 B parameters and 17,200 of 8 B."""
SLOWER = {
    ("fused", "in place"): {"none": 1.0, "dots": 1.1, "full": 1.5},
    ("fused", "scanned"): {"none": 1.37, "dots": 1.4, "full": 1.35},
    ("XLA", "in place"): {"none": 1.15, "dots": 1.25, "full": 1.65},
    ("XLA", "scanned"): {"none": 1.95, "dots": 1.95, "full": 1.75},
}
"""Times as long as a token takes with other products, layers compiled otherwise, or more computed again. Measured of
``none`` and of scanned ``full``; the others are predicted."""
LAYER_COMPILE_S, SCANNED_COMPILE_S = {"fused": 2.4, "XLA": 2.2}, {"fused": 36.0, "XLA": 12.0}
"""Seconds that a GPU's step takes to compile: for each layer in its place, or for all layers scanned."""
KEPT = {("fused", "in place"): 1.15, ("fused", "scanned"): 2.7, ("XLA", "in place"): 2.1, ("XLA", "scanned"): 3.0}
"""Times the bytes of `token_bytes` that a step takes at most: 1.01 to 1.13, 2.0, 1.05 to 1.8, 2.7 measured."""
PADDING = 0.2
"""The time of a token behind a batch's last text, of the time of another, with kernels that leave it out: norms and
attention still take it. Of 1 B: 0.35 to 0.39 measured with the head, whose part is 0.18 and is left out since then."""
CPU_FLOPS = 8e10
"""Operations a second of two cores that train: 5.3 ms a token of 135 M parameters."""
CPU_STEP_TOKENS, CPU_STEP_S, CPU_UPDATE_S = 16, 3e-3, 5e-9
"""Their steps take the time of so many tokens to read the weights, seconds to begin, and seconds for each parameter of
the slots' adapters, which the optimizer reads and writes."""
CPU_COMPILE_S = 4.0
"""Seconds that they take to compile a step, whose layers are scanned."""


class StepVariant(NamedTuple):
    """A variant of the training step: all compute the same, at other speeds and in more or less memory.

    Attributes:
        kernels: Implementation of the adapter product (`pallas_kernels`); None is the fastest fused one that runs here.
        remat: What the backward pass computes again, and whether one compiled layer serves all.
    """

    kernels: str | None
    remat: Remat

    @property
    def kind(self) -> tuple[str, str]:
        """Whose products, and where layers are compiled."""
        return "XLA" if self.kernels == "xla" else "fused", "scanned" if self.remat.scan_layers else "in place"

    def __str__(self) -> str:
        """The variant, in words."""
        products = {None: "fused kernels", "xla": "XLA's products"}.get(self.kernels, self.kernels)
        return f"{products}, layers {self.kind[1]}, remat {self.remat.remat}"


@dataclass(frozen=True)
class Prices:
    """Seconds of training.

    Attributes:
        step_s: Of a step whatever its tokens.
        token_s: Of a token more.
        compile_s: Of the compilation of a step for another shape.
        padding: The time of a token that no text fills, of the time of another.
    """

    step_s: float
    token_s: float
    compile_s: float
    padding: float = 1.0

    @property
    def step_tokens(self) -> int:
        """Tokens' worth of time that a step takes whatever its tokens."""
        return round(self.step_s / self.token_s)


def prices_of(config: ModelConfig, variant: StepVariant, *, slots: int, rank: int, keys: Collection[str]) -> Prices:
    """Returns what the training steps of a run take on the default backend.

    Args:
        config: The base.
        variant: Of the step. On a CPU all are priced alike.
        slots: Of a device.
        rank: The largest of any trial.
        keys: Projections that any trial adapts.
    """
    if jax.default_backend() == "cpu":
        token_s = 4 * token_parameters(config) / CPU_FLOPS
        update_s = CPU_UPDATE_S * slots * adapter_parameters(config, rank, keys)
        return Prices(CPU_STEP_S + CPU_STEP_TOKENS * token_s + update_s, token_s, CPU_COMPILE_S)
    products, layers = variant.kind
    token_s = SLOWER[variant.kind][variant.remat.remat] * (TOKEN_S + 4 * token_parameters(config) / TRAINING_FLOPS)
    compile_s = SCANNED_COMPILE_S[products]
    if layers == "in place":
        compile_s = max(compile_s, config.num_layers * LAYER_COMPILE_S[products])
    padding = PADDING if skips_padding(variant.kernels) else 1.0
    copied = PASSES[variant.remat.remat] * 2 * token_parameters(config) if variant.kind == ("fused", "scanned") else 0
    return Prices(STEP_S * config.num_layers / 30 + COPIED_S * copied, token_s, compile_s, padding)


def compile_tokens(prices: Prices) -> int:
    """Returns the tokens that could be trained on while a step is compiled; 0 on a CPU, where that is short."""
    return 0 if jax.default_backend() == "cpu" else math.ceil(prices.compile_s / prices.token_s)


def tokens_that_fit(
    free_bytes: int, config: ModelConfig, variant: StepVariant, *, slots: int, rank: int, keys: Collection[str]
) -> int:
    """Returns the tokens of the largest step that a device holds beside what stays from step to step, by formulas.

    Args:
        free_bytes: Of the device, beside the base, all that slots hold, and the logits of a chunk of targets.
        config: The base; the part of it that a device of a mesh computes.
        variant: Of the step.
        slots: Of the device.
        rank: The largest of any trial.
        keys: Projections that any trial adapts.
    """
    each = KEPT[variant.kind] * sum(token_bytes(config, rank, keys, variant.remat.remat))
    gradients = 4 * slots * adapter_parameters(config, rank, keys)
    return 0 if gradients > free_bytes else int(free_bytes / each)
