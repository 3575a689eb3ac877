"""The config of an adapter, read from and written to the adapter_config.json of `peft` 0.21."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altojax.adapters.target_modules import Modules, target_fields
from altojax.adapters.target_parameters import parameter_field
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import expert_projections
from jaxlm.families.registry import family_of
from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError

CONFIG_NAME = "adapter_config.json"
GENERATION_NAME = "generation_config.json"
QUANTIZATION = "base_model_quantization"
"""The field that peft does not have, and ignores."""

_UNSET: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "kasa_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}
"""Fields of peft's LoraConfig that plain LoRA leaves at their defaults."""

_CHANGES_NOTHING = {
    "auto_mapping",
    "base_model_name_or_path",
    QUANTIZATION,
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_rslora",
}
"""Fields that are read here, or that leave a trained adapter what it is; any other has to be unset."""

_LARGEST = 2**31
_KINDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "r": ((int,), "a whole number above 0"),
    "lora_alpha": ((int, float), "a number"),
    "lora_dropout": ((int, float, None), "a number"),
    "use_rslora": ((True, False, None), "true or false"),
    "base_model_name_or_path": ((str, None), "a name"),
    QUANTIZATION: ((str, None), "a form such as nf4"),
    "target_modules": ((str, [str], None), "a regular expression or a list of names"),
    "target_parameters": (([str], None), "a list of names"),
    "exclude_modules": ((str, [str], None), "a regular expression or a list of names"),
    "layers_to_transform": ((int, [int], None), "a layer or a list of them"),
    "layers_pattern": ((str, [str], None), "a name or a list of them"),
}
"""Kinds of the fields that are read, None where one may be missing, and what to say of any other."""

_INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's description, without its weights.

    Attributes:
        base_model_name: The base as the user named it.
        rank: Columns of A.
        alpha: The scale is alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
        use_rslora: Rank-stabilised scaling.
        dropout: Of the adapter's input while it trained.
        target_modules: As the user wrote them.
        modules: What they came to, with the parameters: projection key -> layers adapted.
        target_parameters: As the user wrote them.
        base_quantization: The form of the base's matrices while it trained, such as ``nf4``; ``none`` where its files
            were quantised and this was undone, empty where they were not, or where nobody says.
    """

    base_model_name: str
    rank: int
    alpha: float
    use_rslora: bool
    dropout: float
    target_modules: str | list[str]
    modules: Modules
    target_parameters: Sequence[str] = ()
    base_quantization: str = ""

    @property
    def trained_on(self) -> str:
        """The form of the base while it trained, in words."""
        return "that was dequantised" if self.base_quantization == "none" else f"in {self.base_quantization}"

    @property
    def scale(self) -> float:
        """The factor of A @ B."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def config_fields(spec: AdapterSpec, config: ModelConfig) -> dict[str, Any]:
    """Returns every field that peft itself would write into adapter_config.json, and how its base was quantised."""
    in_modules = {key: layers for key, layers in spec.modules.items() if key not in expert_projections(config)}
    return {
        **_UNSET,
        **target_fields(in_modules, config),
        "target_parameters": parameter_field(spec.modules, config),
        "base_model_name_or_path": spec.base_model_name,
        "fan_in_fan_out": not family_of(config).transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,
        "lora_dropout": spec.dropout,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "r": spec.rank,
        "task_type": "CAUSAL_LM",
        "use_rslora": spec.use_rslora,
        **({QUANTIZATION: spec.base_quantization} if spec.base_quantization else {}),
    }


def read_ends(folder: Path) -> tuple[int, ...]:
    """Returns the tokens that end what an adapter has learnt to write, none where its folder does not say.

    Raises:
        UserError: Its generation_config.json is damaged, or says it in another way than transformers does.
    """
    path = folder / GENERATION_NAME
    if not path.is_file():
        return ()
    ends = read_json(path).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise UserError(f"{path}: eos_token_id is {json.dumps(ends)}, expected a token id or a list of them")
    return tuple(listed)


def read_fields(folder: Path) -> dict[str, Any]:
    """Reads and vets adapter_config.json.

    Returns:
        Its fields; `r` and `lora_alpha` are there.

    Raises:
        UserError: There is none, it is no JSON object, or it asks for more than plain LoRA.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        steps = sorted(
            folder.glob(f"checkpoint-*/{CONFIG_NAME}"), key=lambda one: (len(one.parent.name), one.parent.name)
        )
        hint = f" (did you mean '{steps[-1].parent}'?)" if steps else ""
        raise UserError(f"{folder}: no {CONFIG_NAME} here, expected the folder of a LoRA adapter{hint}")
    fields = read_json(path)
    _expect(path, fields, "peft_type", ("LORA",))
    _expect(path, fields, "task_type", ("CAUSAL_LM", None))
    _expect(path, fields, "init_lora_weights", _INITS_THAT_KEEP_THE_BASE)
    for key, value in fields.items():
        if key not in _CHANGES_NOTHING and value and value != _UNSET.get(key):
            raise UserError(f"{path}: {key} is {_short(value)}; only plain LoRA can be read, expected it unset")
    for key, (kinds, expected) in _KINDS.items():
        if not _is_one_of(fields.get(key), kinds):
            raise UserError(f"{path}: {key} is {_short(fields.get(key))}, expected {expected}")
    if fields["r"] < 1:
        raise UserError(f"{path}: r is {fields['r']}, expected a whole number above 0")
    return fields


def _is_one_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    for kind in kinds:
        if kind is None or isinstance(kind, bool):
            found = value is kind
        elif isinstance(kind, list):
            found = isinstance(value, list) and all(_is_one_of(item, tuple(kind)) for item in value)
        elif kind is int:
            found = type(value) is int and abs(value) < _LARGEST
        elif kind is float:
            found = type(value) is float and math.isfinite(value)
        else:
            found = isinstance(value, kind)
        if found:
            return True
    return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _expect(path: Path, fields: dict[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    if key in fields and fields[key] not in allowed:
        names = " or ".join(json.dumps(value) for value in allowed)
        raise UserError(f"{path}: {key} is {_short(fields[key])}, expected {names}")
