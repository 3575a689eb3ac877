"""Models from files or at random, straight onto one device or a mesh: of a shard never more than a part in between."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Int

from jaxlm.devices.frozen_weight import FrozenWeight, Pack, dense, specs_of
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Weight
from jaxlm.families.names import weights as weights_of
from jaxlm.files.gguf.weights import GGUFFile
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.hub import find_model
from jaxlm.files.shards import load_weight
from jaxlm.files.stored import WeightSource
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import Forms, Keep, forms_of, is_packable
from jaxrun.process.errors import UserError
from jaxrun.process.notices import tell_once

_OF_EXPERTS = re.compile(r".*(\.experts\.|_exps\.|\.ffn_(gate|up|down)\.\d+\.)").match
"""Whether a key is of experts: of each by itself, or of all of a layer, in Hugging Face's names or GGUF's."""
Placement = Callable[[Weight], NamedSharding]
"""Gives the sharding of a weight's Variable, ``[layer, *Weight.shape]`` or ``Weight.shape``, over a mesh."""


def load_model(
    source: str | Path,
    *,
    dtype: DTypeLike,
    remat: str = "none",
    scan_layers: bool = True,
    random_init: bool = False,
    seed: int = 0,
    placement: Placement | None = None,
    pack: Pack | Keep | None = None,
) -> tuple[ModelConfig, Transformer]:
    """Loads a model onto the default device, or onto a mesh.

    A process reads its own devices' shards, in parts, and needs beside their shards a few parts of host memory.
    No code that comes with a model is ever run, and no pickle is ever opened.

    Args:
        source: A Hugging Face folder, a ``.gguf`` file or a hub id.
        dtype: Of the weights and of the computation.
        remat: See `Transformer`.
        scan_layers: Likewise.
        random_init: Fill the model with random weights; only its config is read.
        seed: Of the random weights, which are the same wherever they lie.
        placement: The sharding of each weight over a mesh, which may have devices of other processes: all of them load
            at the same time. None is the default device.
        pack: The format in which matrices of projections are kept, a layer at a time as they come, or which forms of
            the files they stay in; None is `dtype`, also of quantised files.

    Raises:
        UserError: No such model; a setting that is not implemented; a weight missing, left over or of another shape.
    """
    opened = _open(source, weights=not random_init)
    config = opened.config
    if callable(pack):
        forms_of(config, pack)
    kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "remat": remat, "scan_layers": scan_layers}
    if random_init:
        return config, _draw(config, kinds, seed, placement, pack if callable(pack) else None)
    return config, _fill(opened, kinds, placement, pack)


def read_forms(source: str | Path, pack: Pack | Keep | None, *, weights: bool = True) -> Forms:
    """Returns the forms of a model's matrices, as `load_model` would load them, without loading any.

    Args:
        source: As for `load_model`.
        pack: Likewise.
        weights: Whether its weights are wanted; random ones are in no form of files.

    Raises:
        UserError: As `load_model`.
    """
    if callable(pack):
        return forms_of(read_model_config(source, weights=False), pack)
    if pack is None or not weights:
        return {}
    opened = _open(source, weights=True)
    _check_entries(opened)
    return _kept_forms(opened, pack)


def read_model_config(source: str | Path, *, weights: bool = True) -> ModelConfig:
    """Returns a model's shapes and switches without loading it.

    Args:
        source: As for `load_model`.
        weights: Whether its weights are going to be wanted, and so have to be there, each with its shape.

    Raises:
        UserError: No such model; a setting that is not implemented; a weight missing, left over or of another shape.
    """
    opened = _open(source, weights=weights)
    if weights:
        _check_entries(opened)
    return opened.config


def _open(source: str | Path, *, weights: bool) -> WeightSource:
    path = find_model(source, weights=weights)
    return GGUFFile(path) if path.suffix == ".gguf" else HFFolder(path)


def _draw(
    config: ModelConfig, kinds: Mapping[str, Any], seed: int, placement: Placement | None, pack: Pack | None
) -> Transformer:
    """Random weights; on a mesh one weight at a time, each device computing its own shard."""

    def build() -> Transformer:
        return Transformer(config, **kinds, rngs=nnx.Rngs(seed))

    if placement is None and pack is None:
        return build()

    def draw(weight: Weight) -> Any:
        def alone() -> Any:
            value = dict(nnx.to_flat_state(nnx.state(build())))[_path(weight)].get_value()
            return value if pack is None or not is_packable(weight) else pack(value.astype(jnp.float32))

        sharding = None if placement is None else placement(weight)
        return jax.jit(alone, out_shardings=_shardings(jax.eval_shape(alone), sharding))()

    return _assemble(config, kinds, draw)


def _check_entries(source: WeightSource) -> None:
    """Compares the files' lists of weights with those of the config; reads no weight."""
    wanted = weights_of(source.config)
    lacking, left_over = source.missing(wanted)
    if (found := next(filter(_OF_EXPERTS, left_over), None)) and (key := next(filter(_OF_EXPERTS, lacking), None)):
        raise UserError(f"{source.where}: holds experts as {found}, a form that is not read, expected {key}")
    if lacking:
        raise UserError(f"{source.where}: weight {_some(lacking)} is missing, expected by its config")
    if left_over:
        raise UserError(f"{source.where}: weight {_some(left_over)} is unexpected for its config")
    for weight in wanted:
        for key, shape, _ in (source.find(weight, layer) for layer in weight.entries):
            if shape != weight.shape:
                raise UserError(
                    f"{source.where}: weight {key} has shape {shape}, expected {weight.shape} by its config"
                )


def _fill(
    source: WeightSource, kinds: Mapping[str, Any], placement: Placement | None, pack: Pack | Keep | None
) -> Transformer:
    _check_entries(source)
    dtype = kinds["param_dtype"]
    kept = _kept_forms(source, pack) if isinstance(pack, Keep) else {}

    def load(weight: Weight) -> Any:
        sharding = None if placement is None else placement(weight)
        if weight.path in kept:
            return _load_layers(source, weight, lambda one: one, dtype, sharding, packed=True)
        if callable(pack) and is_packable(weight):
            return _load_layers(source, weight, lambda one: pack(dense(one, jnp.float32)), dtype, sharding)
        if not source.dequantises and any(source.form(weight, layer) is not None for layer in weight.entries):
            return _load_layers(source, weight, lambda one: dense(one, dtype).astype(dtype), dtype, sharding)
        return load_weight(source, weight, dtype, sharding)

    return _assemble(source.config, kinds, load)


def _assemble(config: ModelConfig, kinds: Mapping[str, Any], weight_of: Callable[[Weight], Any]) -> Transformer:
    def build() -> Transformer:
        return Transformer(config, **kinds, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    for weight in weights_of(config):
        flat[_path(weight)] = flat[_path(weight)].replace(weight_of(weight))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _path(weight: Weight) -> tuple[str, ...]:
    return tuple(weight.path.split("."))


def _kept_forms(source: WeightSource, keep: Keep) -> Forms:
    """Returns the forms of matrices that stay as the files have them: all layers in one form."""
    found: dict[str, FrozenWeight] = {}
    if keep is Keep.RELEASED and source.dequantises:
        return found
    for weight in filter(is_packable, weights_of(source.config)):
        forms = [source.form(weight, layer) for layer in weight.entries]
        first = forms[0]
        if first is None or any(one is None or not _alike(one, first) for one in forms):
            if any(one is not None for one in forms):
                tell_once(f"{source.where}: {weight.path} is dense, since its layers are stored in different forms")
            continue
        count = len(forms)
        found[weight.path] = jax.tree.map(lambda one, n=count: jax.ShapeDtypeStruct((n, *one.shape), one.dtype), first)
    return found


def _alike(one: FrozenWeight, other: FrozenWeight) -> bool:
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), form) for form in (one, other)]
    return bool(shapes[0] == shapes[1])


def _load_layers(
    source: WeightSource,
    weight: Weight,
    make: Callable[[Any], Any],
    dtype: DTypeLike,
    sharding: NamedSharding | None,
    *,
    packed: bool = False,
) -> Any:
    """Reads a matrix of all layers, of which no more than one at a time is as it was read.

    Args:
        source: The files.
        weight: The matrix.
        make: Of a layer's matrix, [1, in, out] or packed, what stays of it.
        dtype: Of the computation.
        sharding: Of the matrix; None is one device.
        packed: Whether it is read packed also where it could be read as numbers.

    Raises:
        UserError: A number is not finite in `dtype`.
    """
    assert weight.layers is not None
    made: Any = None
    for place, layer in enumerate(weight.layers):
        if (packed or not source.dequantises) and source.form(weight, layer) is not None:
            matrix: Any = _put(source.packed(weight, layer), sharding)
        else:
            matrix = load_weight(source, replace(weight, layers=(layer,)), jnp.float32, sharding)
        if made is None:
            shapes = jax.eval_shape(make, matrix)
            shardings = _shardings(shapes, sharding)
            packing = jax.jit(make, out_shardings=shardings)
            is_finite = jax.jit(lambda one: jnp.isfinite(dense(one, dtype)).all())
            empty = partial(_stacked_zeros, shapes, len(weight.layers))
            made = jax.jit(empty, out_shardings=shardings)()
        of_layer = packing(matrix)
        if not is_finite(of_layer):
            key, kind = source.find(weight, layer).key, jnp.dtype(dtype).name
            raise UserError(f"{source.where}: weight {key} is not finite as it is kept, expected numbers in {kind}")
        made = jax.block_until_ready(_put_layer(made, of_layer, np.int32(place)))
    return made


def _put(layer: FrozenWeight, sharding: NamedSharding | None) -> FrozenWeight:
    """Places a layer's packed arrays, of which a process has all."""
    stacked = jax.tree.map(lambda one: one[None], layer)
    if sharding is None:
        return jax.tree.map(jnp.asarray, stacked)
    return jax.tree.map(
        lambda one, where: jax.make_array_from_callback(one.shape, where, lambda index: one[index]),
        stacked,
        _shardings(stacked, sharding),
    )


def _stacked_zeros(shapes: Any, layers: int) -> Any:
    return jax.tree.map(lambda one: jnp.zeros((layers, *one.shape[1:]), one.dtype), shapes)


@partial(jax.jit, donate_argnums=0)
def _put_layer(stacked: Any, layer: Any, place: Int[Any, ""]) -> Any:
    return jax.tree.map(lambda all, one: jax.lax.dynamic_update_slice_in_dim(all, one, place, 0), stacked, layer)


def _shardings(weight: Any, sharding: NamedSharding | None) -> Any:
    """Returns the sharding of each array of a weight, given the weight's."""
    if sharding is None:
        return None
    return jax.tree.map(lambda spec: NamedSharding(sharding.mesh, spec), specs_of(weight, sharding.spec))


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
