"""The families that differ the most, and every one of them before a merge."""

import pytest

from jaxlm.families.registry import FAMILIES

UNLIKE = ("gemma3", "gpt2", "llama")
"""Between them rotated and learned positions, fused projections, biases, windows, three kinds of norms, tied heads."""
unlike_families = pytest.mark.parametrize("family", UNLIKE)
"""For what knows no family: layers' stacks, caches of keys, sharding."""
every_family = pytest.mark.parametrize(
    "family", [family if family in UNLIKE else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
