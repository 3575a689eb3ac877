"""Target modules of an adapter: PEFT's rules for `target_modules`, both ways.

PEFT names modules by their path in the Hugging Face model (`model.layers.3.self_attn.q_proj`); here one projection of
all layers is one stacked variable, so a selection is ``{projection key: layer indices}``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Projection, expert_projections, projections
from jaxlm.families.projections import ROUTER, expert_kinds_of, kinds_of
from jaxlm.families.registry import family_of
from jaxrun.process.errors import UserError, nearest
from jaxrun.process.notices import tell_once
from jaxrun.untrusted.patterns import Pattern

ALL_LINEAR = "all-linear"
FROZEN_MODULES = ("lm_head", "embed_tokens", "wte", "wpe", "embeddings")

type Modules = dict[str, tuple[int, ...]]
"""Projection key inside a layer, such as ``self_attn.q_proj`` -> the layers adapted, in rising order."""


def module_paths(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Returns every path an adapter can sit on -> (projection key, layer), layer by layer."""
    return paths_of(projections(config))


def paths_of(known: Mapping[str, Projection]) -> dict[str, tuple[str, int]]:
    """Returns the path of every layer's projections -> (projection key, layer), layer by layer."""
    found = [(layer, key, one) for key, one in known.items() for layer in one.layers]
    return {one.hf.format(i=layer): (key, layer) for layer, key, one in sorted(found, key=lambda place: place[0])}


def match_targets(target_modules: str | Sequence[str], config: ModelConfig) -> Modules:
    """Finds the projections that `target_modules` names, by PEFT's rules.

    Args:
        target_modules: ``"all-linear"`` for every projection but the head; another string is a regular expression that
            has to match a whole path (``model.layers.0.self_attn.q_proj``); a list names path endings, one module or
            more (``q_proj``, ``mlp.down_proj``, ``layers.3.self_attn.q_proj``). Names of all parts of a fused one
            (``q_proj``, ``k_proj`` and ``v_proj`` of ``qkv_proj``) are the whole one, which gets one A and one B.
        config: The model.

    Returns:
        The layers adapted for each projection key, in the model's order.

    Raises:
        UserError: Nothing matches, an entry of the list matches nothing or a part of a fused projection alone, the
            regular expression is broken, or experts are named.
    """
    paths = module_paths(config)
    _refuse_experts(target_modules, config)
    if isinstance(target_modules, str):
        found = selected(paths, target_modules)
        if not found:
            raise UserError(_no_regex_match(target_modules, paths))
        return group(found, paths)
    if not target_modules:
        raise UserError("target_modules is an empty list; expected module names, a regular expression or 'all-linear'")
    target_modules = _fused(target_modules, config)
    for entry in target_modules:
        if not selected(paths, [entry]):
            raise UserError(_unknown_module(entry, paths))
    return group(selected(paths, list(target_modules)), paths)


def _refuse_experts(target_modules: str | Sequence[str], config: ModelConfig) -> None:
    """Refuses names of experts, which are no modules; says once that all projections are without them."""
    if not config.routed:
        return
    if isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR:
        tell_once(
            f"target_modules: {ALL_LINEAR} is the projections of attention; experts are adapted by target_parameters, "
            "their router never"
        )
        return
    family = family_of(config)
    names = [
        family.module_in_layer(key) for key in (*(one.key for one in expert_kinds_of(config)), ROUTER, "mlp.experts")
    ]
    each = {name: range(config.experts if "{e}" in name else 1) for name in names}
    frozen = [name.format(i=i, e=e) for i in range(config.num_layers) for name in names for e in each[name]]
    entries = [target_modules] if isinstance(target_modules, str) else target_modules
    for entry in entries:
        if found := selected(frozen, entry if isinstance(target_modules, str) else [entry]):
            raise UserError(
                f"target_modules: '{entry}' names {found[0]}, which is no module to adapt; expected projections of "
                f"attention, {', '.join(_leaf(one.hf) for one in projections(config).values())}, and experts in "
                f"target_parameters, {', '.join(expert_projections(config))}"
            )


def _fused(entries: Sequence[str], config: ModelConfig) -> list[str]:
    """Returns the entries with the name of a fused projection for those of all its parts."""
    kinds = {kind.key: kind for stack in config.stacks for kind in kinds_of(stack.config)}
    names, found = {one.inside: one.hf for one in projections(config).values()}, list(entries)
    for kind in kinds.values():
        whole = _leaf(names[kind.key])
        for place in dict.fromkeys(entry.removesuffix(_leaf(entry)) for entry in entries if _leaf(entry) in kind.parts):
            given = [part for part in kind.parts if place + part in entries]
            if len(given) < len(kind.parts):
                raise UserError(
                    f"target_modules: '{place}{given[0]}' is a part of {whole} in this model, whose adapter is one; "
                    f"expected {place}{whole}, or all of {', '.join(kind.parts)}"
                )
            tell_once(f"target_modules: {', '.join(kind.parts)} are one projection here, {whole}; its adapter is one")
            found = [entry for entry in found if entry not in {place + part for part in kind.parts}] + [place + whole]
    return found


def selected(
    paths: Iterable[str],
    target_modules: str | Sequence[str],
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
) -> list[str]:
    """Returns the paths that PEFT would adapt for these fields of an adapter_config.json, in the order given.

    Source: `check_target_module_exists` of peft 0.21.
    """
    if isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR:
        target_modules = ".*"
    layers = {layers_to_transform} if isinstance(layers_to_transform, int) else set(layers_to_transform or ())
    given = [layers_pattern] if isinstance(layers_pattern, str) else list(layers_pattern or [r"[^.]*"])
    patterns = [Pattern(rf"(?:^|.*?\.){one}\.(?P<layer>\d+)\.", "layers_pattern") for one in given]
    named, excluded = _chooser(target_modules, "target_modules"), _chooser(exclude_modules or [], "exclude_modules")

    def chosen(path: str) -> bool:
        if excluded(path) or not named(path):
            return False
        whole = isinstance(target_modules, str) or path in target_modules
        return whole or not layers or _layer(path, patterns) in layers

    return [path for path in paths if chosen(path)]


def group(found: Iterable[str], paths: Mapping[str, tuple[str, int]]) -> Modules:
    """Turns paths into {projection key: layers}."""
    grouped: dict[str, list[int]] = {}
    for path in found:
        key, layer = paths[path]
        grouped.setdefault(key, []).append(layer)
    return {key: tuple(sorted(layers)) for key, layers in grouped.items()}


def targets_of(modules: Modules, config: ModelConfig) -> str | list[str]:
    """Returns the shortest `target_modules` that `match_targets` makes exactly this selection of."""
    paths = module_paths(config)
    if modules == group(selected(paths, ALL_LINEAR), paths):
        return ALL_LINEAR
    fields = target_fields(modules, config)
    if fields["layers_to_transform"] is None:
        named: str | list[str] = fields["target_modules"] or []
        return named
    return [path for path, (key, layer) in paths.items() if layer in modules.get(key, ())]


def target_fields(modules: Modules, config: ModelConfig) -> dict[str, Any]:
    """Says in PEFT's words which projections are adapted.

    Args:
        modules: The selection.
        config: The model.

    Returns:
        `target_modules`, `layers_to_transform` and `layers_pattern` of an adapter_config.json. Names are as short as
        they can be without reaching another projection; None where there are no modules. When layers differ from
        projection to projection every path is listed in full. Of a multimodal model's text half a regular expression
        that its tower does not match, though modules there have the same names; it matches in the whole and in
        the text class.
    """
    if not modules:
        return {"target_modules": None, "layers_to_transform": None, "layers_pattern": None}
    if config.whole:
        return {
            "target_modules": _in_either_class(modules, config),
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    chosen, every = _layers_by_name(modules, config), _layers_by_name(all_modules(config), config)
    among = sorted({layer for layers in chosen.values() for layer in layers})
    if any(layers != every[name].intersection(among) for name, layers in chosen.items()):
        paths = [path for path, (key, layer) in module_paths(config).items() if layer in modules.get(key, ())]
        return {"target_modules": paths, "layers_to_transform": None, "layers_pattern": None}
    names = set()
    for name in chosen:
        namesakes = {other for other in every if _leaf(other) == _leaf(name)}
        names.add(_leaf(name) if namesakes <= chosen.keys() else name)
    partial = any(layers != every[name] for name, layers in chosen.items())
    return {
        "target_modules": sorted(names),
        "layers_to_transform": among if partial else None,
        "layers_pattern": _container(next(iter(projections(config).values())).hf) if partial else None,
    }


def all_modules(config: ModelConfig) -> Modules:
    """Returns every projection with all of its layers."""
    return {key: one.layers for key, one in projections(config).items()}


def _layers_by_name(modules: Modules, config: ModelConfig) -> dict[str, set[int]]:
    """Returns the layers by the name inside a layer, which layers of all shapes have in common."""
    known, found = projections(config), dict[str, set[int]]()
    for key, layers in modules.items():
        found.setdefault(known[key].hf.rpartition("{i}.")[2], set()).update(layers)
    return found


def _in_either_class(modules: Modules, config: ModelConfig) -> str:
    every, names = _layers_by_name(all_modules(config), config), dict[str, list[str]]()
    for name, layers in _layers_by_name(modules, config).items():
        among = r"\d+" if layers == every[name] else f"(?:{'|'.join(map(str, sorted(layers)))})"
        names.setdefault(among, []).append(re.escape(name))
    inside = "|".join(rf"{among}\.(?:{'|'.join(found)})" for among, found in names.items())
    return rf"(?:.*\.)?(?:model|language_model)\.layers\.(?:{inside})"


def _chooser(names: str | Sequence[str], where: str) -> Callable[[str], bool]:
    """Returns a predicate on paths: a regular expression, or one of several endings."""
    if isinstance(names, str):
        pattern = Pattern(names, where)
        return lambda path: pattern.fullmatch(path) is not None
    return lambda path: any(path == name or path.endswith(f".{name}") for name in names)


def _layer(path: str, patterns: Sequence[Pattern]) -> int | None:
    matches = (pattern.match(path) for pattern in patterns)
    return next((int(found["layer"]) for found in matches if found), None)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _container(template: str) -> str:
    return _leaf(template.partition(".{i}.")[0])


def _endings(paths: Iterable[str]) -> list[str]:
    inside = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", path) for path in paths)
    return list(dict.fromkeys([*(_leaf(name) for name in inside), *inside]))


def _unknown_module(entry: str, paths: Mapping[str, tuple[str, int]]) -> str:
    if _leaf(entry) in FROZEN_MODULES:
        return f"target_modules: '{entry}' cannot carry an adapter; only the projections inside the layers can"
    endings = _endings(paths)
    leaves = ", ".join(name for name in endings if "." not in name)
    return f"target_modules: no module of this model is named '{entry}'{nearest(entry, endings)}; it has {leaves}"


def _no_regex_match(pattern: str, paths: Mapping[str, tuple[str, int]]) -> str:
    example = next(iter(paths))
    if selected(paths, [pattern]):
        hint = f"; for the module of that name write a list: [{pattern}]"
    else:
        hint = nearest(pattern, [ALL_LINEAR, *_endings(paths)])
    return f"target_modules: the regular expression '{pattern}' matches no whole module path such as '{example}'{hint}"
