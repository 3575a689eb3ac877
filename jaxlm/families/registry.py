"""The table of families: by name, by ``model_type`` in config.json, by GGUF architecture."""

from jaxlm.families.config import ModelConfig
from jaxlm.families.family import Family
from jaxlm.families.gguf import GGUFFormat
from jaxlm.families.known.cohere import COHERE, COHERE2
from jaxlm.families.known.gemma import GEMMA2, GEMMA3, GEMMA4
from jaxlm.families.known.glm import GLM, GLM4
from jaxlm.families.known.gpt2 import GPT2
from jaxlm.families.known.gpt_oss import GPT_OSS
from jaxlm.families.known.granite import GRANITE
from jaxlm.families.known.lfm2 import LFM2
from jaxlm.families.known.llama import LLAMA, SEED_OSS
from jaxlm.families.known.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from jaxlm.families.known.mixtures import MIXTRAL, QWEN3_MOE
from jaxlm.families.known.nope import EXAONE4, SMOLLM3
from jaxlm.families.known.olmo import OLMO2, OLMO3
from jaxlm.families.known.phi3 import PHI3
from jaxlm.families.known.qwen import QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA3,
        GPT2,
        SMOLLM3,
        GRANITE,
        OLMO2,
        OLMO3,
        GEMMA2,
        GEMMA4,
        COHERE,
        COHERE2,
        EXAONE4,
        MINISTRAL,
        MINISTRAL3,
        PHI3,
        GLM,
        GLM4,
        SEED_OSS,
        QWEN3_MOE,
        MIXTRAL,
        GPT_OSS,
        LFM2,
    )
}
"""By name."""


def register(family: Family) -> None:
    """Adds a family to `FAMILIES`.

    Raises:
        ValueError: Its name, its model type or its architecture in GGUF is another's.
    """
    taken = {*FAMILIES, *by_model_type(), *by_whole(), *by_architecture()}
    for name in (family.name, family.model_type, *family.wholes, family.gguf.architecture if family.gguf else ""):
        if name in taken:
            raise ValueError(f"a family called {name!r} exists already")
    FAMILIES[family.name] = family


def by_model_type() -> dict[str, Family]:
    """Returns the families by their ``model_type`` in config.json."""
    return {one.model_type: one for one in FAMILIES.values()}


def by_whole() -> dict[str, tuple[Family, ...]]:
    """Returns the families by the model types of the multimodal models of which they are a text half."""
    kinds = dict.fromkeys(kind for one in FAMILIES.values() for kind in one.wholes)
    return {kind: tuple(one for one in FAMILIES.values() if kind in one.wholes) for kind in kinds}


def by_architecture() -> dict[str, tuple[Family, GGUFFormat]]:
    """Returns the families that GGUF stores, and their storage, by architecture; of two of one that without experts."""
    found: dict[str, tuple[Family, GGUFFormat]] = {}
    for one in FAMILIES.values():
        if one.gguf is not None and not (one.example.routed and one.gguf.architecture in found):
            found[one.gguf.architecture] = one, one.gguf
    return found


def mixture_of(architecture: str) -> tuple[Family, GGUFFormat] | None:
    """Returns the family with experts, and its storage, that GGUF stores under an architecture, if there is one."""
    mixtures = (one for one in FAMILIES.values() if one.example.routed and one.gguf is not None)
    return next(((one, one.gguf) for one in mixtures if one.gguf and one.gguf.architecture == architecture), None)


def family_of(config: ModelConfig) -> Family:
    """Returns a model's family."""
    return FAMILIES[config.family]


def random_config(family: str) -> ModelConfig:
    """Returns a tiny model of a family that uses every switch the family has; for tests and dry runs."""
    return FAMILIES[family].example
