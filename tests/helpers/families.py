"""The families that differ the most, and before a merge all that compute something of their own."""

from dataclasses import replace

import pytest

from jaxlm.families.registry import FAMILIES, random_config

UNLIKE = ("gemma3", "gpt2", "llama")
"""Between them rotated and learned positions, fused projections, biases, windows, three kinds of norms, tied heads."""
unlike_families = pytest.mark.parametrize("family", UNLIKE)
"""For what knows no family: layers' stacks, caches of keys, sharding."""
LIKE_OTHERS = (
    *(
        "mistral",
        "qwen3",
        "smollm3",
        "granite",
        "olmo3",
        "gemma2",
        "cohere",
        "exaone4",
        "ministral",
        "ministral3",
        "glm",
        "glm4",
        "seed_oss",
    ),
    *("qwen3_moe", "mixtral", "gemma4"),
)
"""What they compute is one of others' computations, a factor or a bound, or, of Gemma 4, of each token by itself."""
DISTINCT = tuple(family for family in FAMILIES if family not in LIKE_OTHERS)
"""For what a family's own computation may break."""
DENSE = tuple(family for family in DISTINCT if not random_config(family).routed)
"""Those whose every layer has one MLP."""
CUTTABLE = tuple(one for one in DENSE if not (random_config(one).wide_qk_norm or random_config(one).others))
"""Those that twistjax takes."""


def lanes(families):
    return [family if family in UNLIKE else pytest.param(family, marks=pytest.mark.slow) for family in families]


def four_layers(family):
    """The tiny model with one layer more, or as many."""
    config = random_config(family)
    patterns = (config.sliding_pattern and (True, True, False, True), config.rope_pattern and (True, True, False, True))
    return replace(config, num_layers=4, sliding_pattern=patterns[0], rope_pattern=patterns[1])


every_family = pytest.mark.parametrize("family", lanes(DISTINCT))
every_dense_family = pytest.mark.parametrize("family", lanes(DENSE))
every_cuttable_family = pytest.mark.parametrize("family", lanes(CUTTABLE))
