"""Predicted seconds of a step, by measurements in docs/measured/log.md: alternatives are chosen by these.

No clock is read: a run that is interrupted and resumed chooses the same.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import jax

from altojax.estimates.memory_model import adapter_parameters
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections

COMPILE_S = {"scanned, xla": 12.0, "scanned": 25.0, "in place": 100.0}
"""Seconds that a GPU's training step of 30 layers takes to compile: its layers scanned without and with fused adapter
kernels, or in their place."""
STEP_S = 0.025
"""Seconds that its steps take whatever their tokens."""
TOKEN_S, TRAINING_FLOPS = 5e-6, 5e14
"""A GPU trains a token in the first seconds, which bound small models, and its operations at the second rate: 150,000
tokens a second of 135 M parameters, 75,000 of 1 B and 17,000 of 8 B."""
CPU_FLOPS = 8e10
"""Operations a second of two cores that train: 5.3 ms a token of 135 M parameters."""
CPU_STEP_TOKENS, CPU_STEP_S, CPU_UPDATE_S = 16, 3e-3, 5e-9
"""Their steps take the time of so many tokens to read the weights, seconds to begin, and seconds for each parameter of
the slots' adapters, which the optimizer reads and writes."""
CPU_COMPILE_S = 4.0
"""Seconds that they take to compile a step, whose layers are scanned."""


@dataclass(frozen=True)
class Prices:
    """Seconds of training.

    Attributes:
        step_s: Of a step whatever its tokens.
        token_s: Of a token more.
        compile_s: Of the compilation of a step for another shape.
    """

    step_s: float
    token_s: float
    compile_s: float

    @property
    def step_tokens(self) -> int:
        """Tokens' worth of time that a step takes whatever its tokens."""
        return round(self.step_s / self.token_s)


def prices_of(
    config: ModelConfig, *, slots: int, rank: int, keys: Collection[str], kernels: str | None, scan_layers: bool
) -> Prices:
    """Returns what the training steps of a run take on the default backend.

    Args:
        config: The base.
        slots: Of a device.
        rank: The largest of any trial.
        keys: Projections that any trial adapts.
        kernels: Implementation of the adapter product; None takes the fastest that fits.
        scan_layers: Whether one compiled layer serves all.
    """
    if jax.default_backend() == "cpu":
        token_s = 4 * _parameters(config) / CPU_FLOPS
        update_s = CPU_UPDATE_S * slots * adapter_parameters(config, rank, keys)
        return Prices(CPU_STEP_S + CPU_STEP_TOKENS * token_s + update_s, token_s, CPU_COMPILE_S)
    return Prices(gpu_step_s(config), token_s_of(config), _compile_s(config, kernels, scan_layers=scan_layers))


def gpu_step_s(config: ModelConfig) -> float:
    """Returns the seconds that a GPU's steps take whatever their tokens."""
    return STEP_S * config.num_layers / 30


def token_s_of(config: ModelConfig) -> float:
    """Returns the seconds in which a GPU trains a token more of a step."""
    return TOKEN_S + 4 * _parameters(config) / TRAINING_FLOPS


def compile_tokens(config: ModelConfig, kernels: str | None, *, scan_layers: bool) -> int:
    """Returns the tokens that could be trained on while a step is compiled; 0 on a CPU, where that is short."""
    if jax.default_backend() == "cpu":
        return 0
    return math.ceil(_compile_s(config, kernels, scan_layers=scan_layers) / token_s_of(config))


def _compile_s(config: ModelConfig, kernels: str | None, *, scan_layers: bool) -> float:
    if scan_layers:
        return COMPILE_S["scanned, xla" if kernels == "xla" else "scanned"]
    return COMPILE_S["in place"] * config.num_layers / 30


def _parameters(config: ModelConfig) -> int:
    return config.num_layers * sum(one.in_features * one.out_features for one in projections(config).values())
