"""Every family of models before a merge, and every day those that differ the most."""

import pytest

from jaxlm.families.registry import FAMILIES

DAILY = ("gemma3", "gpt2", "llama")
"""Between them rotated and learned positions, fused projections, biases, windows, three kinds of norms, tied heads."""
every_family = pytest.mark.parametrize(
    "family", [family if family in DAILY else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
