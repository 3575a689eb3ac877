"""Adapters of experts in PEFT's form: `target_parameters`, their names in an adapter's file, and how they lie there.

PEFT wraps the module of the experts once for each parameter, in the module's order: with both adapted, what opens the
experts is ``experts.base_layer`` in the file, and what closes them is ``experts``.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from altojax.adapters.target_modules import Modules, group, match_targets, paths_of, targets_of
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Projection, expert_projections, projections
from jaxrun.process.errors import UserError

_WRAPPED = ".base_layer"


def parameter_paths(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Returns every parameter of experts that an adapter can be on -> (projection key, layer), layer by layer."""
    return paths_of(expert_projections(config))


def match(target_modules: str | tuple[str, ...], target_parameters: tuple[str, ...], config: ModelConfig) -> Modules:
    """Finds all that an adapter is on; beside parameters there need not be modules.

    Raises:
        UserError: As they do.
    """
    named = target_modules if isinstance(target_modules, str) else list(target_modules)
    modules = {} if target_parameters and not named else match_targets(named, config)
    return modules | (match_parameters(target_parameters, config) if target_parameters else {})


def match_parameters(target_parameters: Sequence[str], config: ModelConfig) -> Modules:
    """Finds the experts' parameters that `target_parameters` names, by PEFT's rules.

    Args:
        target_parameters: Ends of paths, one name or more: ``experts.down_proj``, or with the layer to choose layers.
        config: The model.

    Returns:
        The layers adapted for each projection key, in the model's order.

    Raises:
        UserError: The model has no experts, or an entry matches none of their parameters.
    """
    paths = parameter_paths(config)
    if not paths:
        raise UserError(
            f"target_parameters: '{target_parameters[0]}' is of experts, and this model ({config.family}) has none; "
            "expected target_modules alone"
        )
    for entry in target_parameters:
        if not selected_parameters(paths, [entry]):
            raise UserError(_unknown_parameter(entry, config))
    return group(selected_parameters(paths, target_parameters), paths)


def selected_parameters(paths: Mapping[str, tuple[str, int]], target_parameters: Sequence[str]) -> list[str]:
    """Returns the paths that PEFT would adapt, in the order given."""
    return [path for path in paths if any(path == one or path.endswith(f".{one}") for one in target_parameters)]


def search_targets(modules: Modules, config: ModelConfig) -> dict[str, Any]:
    """Returns the shortest `target_modules` and `target_parameters` of a search that make exactly this selection."""
    plain = {key: layers for key, layers in modules.items() if key not in expert_projections(config)}
    return {"target_modules": targets_of(plain, config), "target_parameters": parameter_field(modules, config)}


def parameter_field(modules: Modules, config: ModelConfig) -> list[str] | None:
    """Returns `target_parameters` of an adapter_config.json, as short as it can be; None where there are none."""
    known = expert_projections(config)
    found: list[str] = []
    for key, layers in modules.items():
        if key in known:
            whole = layers == known[key].layers
            found += [known[key].inside] if whole else [known[key].hf.format(i=layer) for layer in layers]
    return sorted(found) or None


def entry_modules(adapted: Collection[str], paths: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Returns the module's name in an adapter's file of each parameter that is adapted.

    Args:
        adapted: Those that are, of `paths`.
        paths: All, in the order of the module's parameters, layer by layer.
    """
    named: dict[str, str] = {}
    wraps: dict[str, str] = {}
    for path in reversed([path for path in paths if path in adapted]):
        module = path.rpartition(".")[0]
        wraps[module] = wraps[module] + _WRAPPED if module in wraps else module
        named[path] = wraps[module]
    return named


def to_peft(
    a: Float[np.ndarray, "in_experts rank"], b: Float[np.ndarray, "rank out_experts"], one: Projection, *, fused: bool
) -> tuple[Float[np.ndarray, "experts_rank in"], Float[np.ndarray, "out rank_experts"]]:
    """Returns a layer's A and B of experts as PEFT's lora_A and lora_B.

    Args:
        a: The features of A with the expert's number last.
        b: Likewise those of B; gates and ups by turns.
        one: What they are on.
        fused: Whether the model itself has gates and ups by turns, and not one after the other.
    """
    experts, rank = one.experts, a.shape[1]
    lora_a: np.ndarray = a.reshape(-1, experts, rank).transpose(1, 2, 0).reshape(experts * rank, -1)
    lora_b: np.ndarray = b.reshape(rank, -1, experts)
    if len(one.outputs) == 2 and not fused:
        lora_b = np.concatenate([lora_b[:, ::2], lora_b[:, 1::2]], axis=1)
    lora_b = lora_b.transpose(1, 0, 2).reshape(-1, rank * experts)
    return np.ascontiguousarray(lora_a, np.float32), np.ascontiguousarray(lora_b, np.float32)


def from_peft(half: str, array: np.ndarray, one: Projection, rank: int, *, fused: bool) -> np.ndarray:
    """Returns a layer's A or B of experts, the inverse of `to_peft`.

    Args:
        half: ``lora_A`` or ``lora_B``.
        array: As in the file.
        one: What it is on.
        rank: Of the adapter.
        fused: As for `to_peft`.
    """
    if half == "lora_A":
        return array.reshape(one.experts, rank, -1).transpose(2, 0, 1).reshape(-1, rank)
    found: np.ndarray = array.reshape(-1, rank, one.experts).transpose(1, 0, 2)
    if len(one.outputs) == 2 and not fused:
        found = np.stack(np.split(found, 2, axis=1), axis=2)
    return found.reshape(rank, -1)


def _unknown_parameter(entry: str, config: ModelConfig) -> str:
    leaf = entry.removesuffix(".weight").rpartition(".")[2]
    if entry.endswith(".weight") and any(one.hf.endswith(f".{leaf}") for one in projections(config).values()):
        return f"target_parameters: '{entry}' is the matrix of a module; expected it in target_modules, as {leaf}"
    names = [one.inside for one in expert_projections(config).values()]
    return f"target_parameters: experts of this model have no parameter '{entry}', expected {' or '.join(names)}"
