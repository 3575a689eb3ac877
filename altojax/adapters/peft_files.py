"""Adapters in and out of a folder, as `peft` writes and reads them: adapter_config.json + adapter_model.safetensors."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (teaches NumPy the name bfloat16)
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from altojax.adapters.model_card import model_card
from altojax.adapters.peft_config import (
    CONFIG_NAME,
    GENERATION_NAME,
    QUANTIZATION,
    AdapterSpec,
    config_fields,
    read_fields,
)
from altojax.adapters.target_modules import Modules, group, module_paths, selected
from altojax.adapters.target_parameters import entry_modules, from_peft, parameter_paths, selected_parameters, to_peft
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import TEXT_HALF, adaptable
from jaxlm.files.hf_folder import READABLE
from jaxlm.files.tensor_file import write_tensors
from jaxlm.files.tokenizer import end_tokens, save_tokenizer
from jaxrun.files.atomic import user_errors
from jaxrun.files.folders import replace_folder
from jaxrun.process.errors import UserError, nearest

WEIGHTS_NAME = "adapter_model.safetensors"
type Adapter = dict[str, tuple[Float[np.ndarray, "layer in rank"], Float[np.ndarray, "layer rank out"]]]
"""Projection key -> (A, B), float32, over all layers of the model; layers that are not adapted hold zeros."""

_PREFIX = "base_model.model."
_OF_A_TEXT_HALF = re.compile(r"^(language_model\.model|model)\.(?=layers\.)")
_ENTRY = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.(?P<half>lora_[AB])\.weight")


def export_adapter(
    folder: str | Path,
    spec: AdapterSpec,
    adapter: Adapter,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    card: Mapping[str, Any],
    *,
    ends: Sequence[int] = (),
) -> None:
    """Writes an adapter that peft, vLLM and lm_eval load, reads it back, proves it, and only then puts it in place.

    1. Write all files into a temporary sibling of `folder`.
    2. Read that back: every key is a real module of the right shape, peft's own rules adapt exactly `spec.modules`, and
       every number is the one in memory, to the bit.
    3. fsync, and rename over `folder`.

    Args:
        folder: Where it goes; an older export there is replaced as a whole.
        spec: The adapter's description.
        adapter: Its arrays.
        config: The base model.
        tokenizer: Saved beside the adapter when given.
        card: Facts for the README (hyper-parameters, losses), by the name to show.
        ends: Tokens that end what it has learnt to write, the most frequent first.

    Raises:
        UserError: The folder cannot be written.
        ValueError: The adapter is not what `spec` says, or not the same after reading it back.
    """
    folder = Path(folder)
    tensors = adapter_tensors(spec, adapter, config)
    with user_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as partial:
        write_tensors(partial / WEIGHTS_NAME, tensors)
        fields = config_fields(spec, config)
        (partial / CONFIG_NAME).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(partial, tokenizer, ends)
        stops = end_tokens(ends, config.eos_ids, tokenizer)
        if stops:
            generation = json.dumps({"eos_token_id": list(stops)}, indent=2) + "\n"
            (partial / GENERATION_NAME).write_text(generation, encoding="utf-8")
        (partial / "README.md").write_text(model_card(spec, card, whole=config.whole), encoding="utf-8")
        again, reloaded = read_adapter(partial, config)
        if (again.modules, again.rank, again.scale) != (spec.modules, spec.rank, spec.scale):
            raise ValueError(f"{folder}: wrote {spec} and read back {again}")
        known = adaptable(config)
        for key, layers in spec.modules.items():
            pairs = list(zip(adapter[key], reloaded[key], strict=True))
            places = [known[key].layers.index(layer) for layer in layers]
            if not all(np.array_equal(one[place], read[place]) for one, read in pairs for place in places):
                raise ValueError(f"{folder}: {key} was read back with other numbers than were written")


def read_adapter(folder: str | Path, config: ModelConfig) -> tuple[AdapterSpec, Adapter]:
    """Reads an adapter that this project or `peft` has written; safetensors only.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        config: The model it is for.

    Returns:
        Its description and its arrays.

    Raises:
        UserError: Not an adapter, not plain LoRA, or not for this model; the line names the file and the entry.
    """
    folder = Path(folder)
    fields = read_fields(folder)
    path = _weights_file(folder)
    rank, known = fields["r"], adaptable(config)
    experts = _experts_named(fields, config)
    paths = module_paths(config) | experts
    adapter: Adapter = {}
    halves: dict[str, set[str]] = {}
    for name, array in _entries(path):
        module, half = _module_of(path, name, paths, config)
        key, layer = paths[module]
        one = known[key]
        out, matrices = one.out_features, max(one.experts, 1)
        expected = (rank * matrices, one.fan_in) if half == "lora_A" else (out // matrices, rank * matrices)
        if array.shape != expected:
            raise UserError(f"{path}: {name} has shape {array.shape}, expected {expected} for this model and r={rank}")
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"{path}: {name} holds values that are not finite, expected a trained adapter")
        a, b = adapter.setdefault(key, one.empty_adapter(rank))
        array = array.astype(np.float32)
        own = from_peft(half, array, one, rank, fused=config.fused_experts) if one.experts else array.T
        (a if half == "lora_A" else b)[one.layers.index(layer)] = own
        halves.setdefault(module, set()).add(half)
    _check_complete(path, fields, halves, paths, experts)
    spec = AdapterSpec(
        base_model_name=fields.get("base_model_name_or_path") or "",
        rank=rank,
        alpha=float(fields["lora_alpha"]),
        use_rslora=bool(fields.get("use_rslora", False)),
        dropout=float(fields.get("lora_dropout") or 0.0),
        target_modules=fields.get("target_modules") or sorted(halves),
        modules=group((module for module in paths if module in halves), paths),
        target_parameters=fields.get("target_parameters") or (),
        base_quantization=fields.get(QUANTIZATION) or "",
    )
    return spec, adapter


def adapter_tensors(spec: AdapterSpec, adapter: Adapter, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the entries of the weights file: lora_A (rank, in) and lora_B (out, rank) of every adapted module."""
    known, entries = adaptable(config), _entry_names(spec.modules, config)
    if adapter.keys() != spec.modules.keys():
        raise ValueError(f"the adapter holds {sorted(adapter)}, its description says {sorted(spec.modules)}")
    tensors = {}
    for key, (a, b) in adapter.items():
        projection = known[key]
        expected = projection.empty_adapter(spec.rank)
        if (a.shape, b.shape) != (expected[0].shape, expected[1].shape):
            raise ValueError(f"{key}: A {a.shape}, B {b.shape}; expected {expected[0].shape}, {expected[1].shape}")
        idle = [layer for layer in projection.layers if layer not in spec.modules[key]]
        if b[[projection.layers.index(layer) for layer in idle]].any():
            raise ValueError(f"{key}: layers {idle} hold weights, but only {spec.modules[key]} are said to be adapted")
        for layer in spec.modules[key]:
            module, place = _PREFIX + entries[key, layer], projection.layers.index(layer)
            if projection.experts:
                halves = to_peft(a[place], b[place], projection, fused=config.fused_experts)
            else:
                halves = np.ascontiguousarray(a[place].T, np.float32), np.ascontiguousarray(b[place].T, np.float32)
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = halves
    return tensors


def _entry_names(modules: Modules, config: ModelConfig) -> dict[tuple[str, int], str]:
    """Returns the module's name in the weights file of every (projection key, layer)."""
    paths = parameter_paths(config)
    wrapped = entry_modules({path for path, (key, layer) in paths.items() if layer in modules.get(key, ())}, paths)
    names = {place: path for path, place in module_paths(config).items()}
    return names | {paths[path]: name for path, name in wrapped.items()}


def _experts_named(fields: Mapping[str, Any], config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Returns names in the weights file -> (projection key, layer) of the parameters that `target_parameters` names."""
    paths = parameter_paths(config)
    named = set(selected_parameters(paths, fields.get("target_parameters") or ()))
    wrapped = entry_modules(named, paths)
    return {wrapped[path]: place for path, place in paths.items() if path in named}


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        pickles = sorted(file.name for suffix in ("bin", "pt", "pth", "pkl") for file in folder.glob(f"*.{suffix}"))
        found = f" ({pickles[0]} may run code when it is read and is refused)" if pickles else ""
        raise UserError(f"{folder}: no {WEIGHTS_NAME} here{found}, expected safetensors")
    return path


def _entries(path: Path) -> list[tuple[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind not in READABLE:
                    raise UserError(f"{path}: {name} is {kind}, expected one of {', '.join(READABLE)}")
            return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _module_of(path: Path, name: str, paths: Mapping[str, tuple[str, int]], config: ModelConfig) -> tuple[str, str]:
    entry = _ENTRY.fullmatch(name)
    if entry is None:
        raise UserError(f"{path}: entry {name}, expected {_PREFIX}<module>.lora_A.weight or .lora_B.weight")
    # Adapters of the text class, and of older multimodal classes, name the same modules otherwise.
    module = _OF_A_TEXT_HALF.sub(TEXT_HALF, entry["module"]) if config.whole else entry["module"]
    if module not in paths:
        hint = nearest(entry["module"], paths)
        raise UserError(f"{path}: entry {name}: this model has no projection '{entry['module']}'{hint}")
    return module, entry["half"]


def _check_complete(
    path: Path,
    fields: Mapping[str, Any],
    halves: Mapping[str, set[str]],
    paths: Mapping[str, tuple[str, int]],
    experts: Collection[str],
) -> None:
    """Refuses a file that lacks modules its config names, or holds others: peft would pass over both in silence."""
    if not halves:
        raise UserError(f"{path}: holds no tensors, expected lora_A and lora_B of every adapted module")
    for module, found in halves.items():
        for half in {"lora_A", "lora_B"} - found:
            raise UserError(f"{path}: {_PREFIX}{module}.{half}.weight is missing")
    named = set(experts)
    if fields.get("target_modules"):
        layers, pattern = fields.get("layers_to_transform"), fields.get("layers_pattern")
        modules = [module for module in paths if module not in experts]
        named |= set(selected(modules, fields["target_modules"], layers, pattern, fields.get("exclude_modules")))
    elif not experts:
        return
    for module in halves:
        if module not in named:
            raise UserError(f"{path}: holds weights of {module}, which target_modules of {CONFIG_NAME} does not name")
    for module in paths:
        if module in named and module not in halves:
            key = "target_parameters" if module in experts else "target_modules"
            raise UserError(f"{path}: no weights of {module}, which {key} of {CONFIG_NAME} names")
