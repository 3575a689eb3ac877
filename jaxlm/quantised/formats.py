"""The forms that matrices are packed in as a model is loaded, by name, and what they make of a model."""

from collections.abc import Callable, Mapping
from enum import Enum
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxlm.devices.frozen_weight import FrozenWeight, Pack
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Weight, weights
from jaxlm.families.projections import ROUTER
from jaxlm.models.spec import Quantize
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.int4 import int4
from jaxlm.quantised.int8 import int8
from jaxlm.quantised.nf4 import nf4, nf4_double
from jaxrun.process.errors import UserError


class Keep(Enum):
    """Keeps matrices in the form that the files have them in, rather than pack them."""

    RELEASED = "those of checkpoints that were released quantised"
    ALL = "those of GGUF files, too"


PACKS: Mapping[Quantize, Pack] = {"nf4": nf4, "nf4_double": nf4_double, "int8": int8, "int4": int4}

type Forms = Mapping[str, FrozenWeight]
"""The packed matrices of a model by `Weight.path`, as shapes alone, [layer, rows, columns], of experts [layer, expert,
rows, columns]; others are arrays."""


def pack_of(quantize: Quantize | None) -> Pack | Keep | None:
    """Returns what packs a matrix as the config says; None where matrices are arrays."""
    if quantize is None:
        return Keep.RELEASED
    return Keep.ALL if quantize == "keep" else PACKS.get(quantize)


def make_dense(model: Transformer, dtype: DTypeLike, placement: Callable[[Weight], Any] | None = None) -> None:
    """Turns the packed matrices of a model into arrays, in place, one after the other.

    Args:
        model: The model.
        dtype: Of the arrays.
        placement: The sharding of each; None is one device.
    """
    for weight in filter(is_packable, weights(model.config)):
        *owners, _ = weight.path.split(".")
        owner: Any = reduce(getattr, owners, model)
        kernel = owner.kernel
        if isinstance(packed := kernel.get_value(), FrozenWeight):
            where = None if placement is None else placement(weight)
            kernel.set_value(jax.jit(lambda one: one.dense(dtype), out_shardings=where)(packed))


def names_of(forms: Forms) -> str:
    """Returns what the forms of a model are called, such as ``nf4``; empty where there are none."""
    return ", ".join(sorted({form.name for form in forms.values()}))


def forms_of(config: ModelConfig, pack: Pack) -> Forms:
    """Returns the forms of a model whose projections are packed as they are loaded.

    Args:
        config: The model.
        pack: The format.

    Raises:
        UserError: A matrix that the format cannot hold.
    """
    found = {}
    for weight in filter(is_packable, weights(config)):
        matrix = jax.ShapeDtypeStruct((len(weight.entries), *weight.shape), jnp.float32)
        try:
            found[weight.path] = jax.eval_shape(pack, matrix)
        except UserError as error:
            raise UserError(f"{weight.path}: {error}") from error
    return found


def formed(model: Transformer, forms: Forms) -> Transformer:
    """Returns a model with the packed matrices that forms say; called under `flax.nnx.eval_shape`."""
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for name, form in forms.items():
        path = tuple(name.split("."))
        flat[path] = flat[path].replace(jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), form))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def is_packable(weight: Weight) -> bool:
    """Whether a weight is a matrix of a projection or of experts; all others, routers among them, stay as they are."""
    return weight.path.endswith(".kernel") and not weight.path.endswith(f".{ROUTER}.kernel")


def bytes_of(form: FrozenWeight) -> int:
    """Returns the bytes of a packed matrix, of all its layers."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(form))
