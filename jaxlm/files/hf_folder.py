"""Hugging Face model folders: config.json, and safetensors, sharded or not, memory-mapped in."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlm.devices.frozen_weight import FrozenWeight, dense_shape, of_experts
from jaxlm.families import mxfp4
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import TEXT_HALF, Weight, weights
from jaxlm.families.registry import family_of
from jaxlm.files.hf_config import from_hf, with_ends
from jaxlm.files.hub import REFUSED
from jaxlm.files.stored import Cut, Stored, parts, turned, whole
from jaxlm.quantised.checkpoints.registry import SECTION, scheme_of
from jaxlm.quantised.checkpoints.scheme import Tensors
from jaxlm.quantised.formats import is_packable
from jaxrun.files.foreign_files import check_regular, read_json
from jaxrun.process.errors import UserError

# Buffers that older exports kept beside the weights.
_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
_TEXT_HALVES = (TEXT_HALF, "language_model.model.", "model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
TOWER = re.compile(r"(.*\.)?(visual|(vision|audio)_(tower|embedder)|embed_(vision|audio)|multi_modal_projector)\..*")
"""Modules of a multimodal model beside its text half."""
READABLE = ("F32", "F16", "BF16")
"""Kinds of numbers that weights may be stored as."""
KINDS: dict[str, Any] = {
    **{"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn},
    **{"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64},
}
"""Kinds of numbers that quantised weights are made of."""


class HFFolder:
    """A folder with config.json and safetensors.

    Attributes:
        where: The folder.
        config: Of its config.json.
    """

    def __init__(self, where: Path):
        """Reads config.json; the weights are not opened yet.

        Raises:
            UserError: No config.json, or one that the decoder cannot compute.
        """
        self.where = where
        self.config = read_config(where)
        self._scheme = scheme_of(read_json(where / "config.json"))
        self._headers: dict[Path, tuple[int, dict[str, Any]]] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file that holds each key: of the files in the folder, those that transformers takes.

        Raises:
            UserError: No weights, more than one thing that could be meant, or an index that is wrong.
        """
        single, index = self.where / "model.safetensors", self.where / "model.safetensors.index.json"
        if single.is_file():
            return dict.fromkeys(_open(single).keys(), single)
        if index.is_file():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
                raise UserError(f"{index}: no weight_map, expected the file of every weight")
            for name in set(listed.values()):
                if Path(name).name != name or not (self.where / name).is_file():
                    raise UserError(f"{index}: lists {name!r}, which is not in {self.where}")
            return {key: self.where / name for key, name in listed.items()}
        raise self._no_weights()

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the files lack; keys that the files hold and nothing needs."""
        pairs = [(weight, key) for weight in wanted for layer in weight.entries for key in self._keys(weight, layer)]
        keys, packed = {key for _, key in pairs}, {key for weight, key in pairs if self._is_mxfp4(weight, key)}
        needed = keys - packed | {key + part for key in packed for part in (mxfp4.BLOCKS, mxfp4.SCALES)}
        for weight, key in pairs:
            if parts_of := self._parts(weight, key):
                needed = needed - {key} | set(parts_of)
        spare = set(_HEADS) if self._tied_head_is_the_table() else set()
        left_over = [key for key in self.files if key not in needed | spare and not self._of_no_layer(key)]
        return sorted(needed - self.files.keys()), sorted(left_over)

    def find(self, weight: Weight, layer: int) -> Stored:
        """Looks a tensor up without reading it."""
        keys = self._keys(weight, layer)
        if (form := self.form(weight, layer)) is not None:
            return Stored(keys[0], dense_shape(form), turned=True)
        if self._is_mxfp4(weight, keys[0]):
            blocks, scales = (tuple(self._raw(keys[0] + part).get_shape()) for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            if blocks != (*scales, mxfp4.GROUP // 2):
                path = self.files[keys[0] + mxfp4.BLOCKS]
                raise UserError(f"{path}: weight {keys[0]} has blocks of shape {blocks}, beside scales of {scales}")
            return Stored(keys[0], turned((*scales[:-1], scales[-1] * mxfp4.GROUP)), turned=True)
        shapes = {key: tuple(self._slice(key).get_shape()) for key in keys}
        key = next((key for key in keys if shapes[key] != shapes[keys[0]]), keys[0])
        shape = turned(shapes[key]) if weight.transposed else shapes[key]
        return Stored(key, (weight.experts, *shape) if weight.experts else shape, weight.transposed)

    def read(self, weight: Weight, layer: int, cut: Cut) -> np.ndarray:
        """Reads a part of a tensor as it is in the file, or of each expert's; `cut` has a slice for each axis there."""
        keys = self._keys(weight, layer)
        if self._is_mxfp4(weight, keys[0]):
            blocks, scales = (self._raw(keys[0] + part)[cut[:-1]] for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            return mxfp4.dequantised(blocks, scales)[..., cut[-1]]
        if not weight.experts:
            return self._part(keys[0], cut)
        each = [self._part(key, cut[1:]) for key in keys[cut[0]]]
        same = len({one.dtype for one in each}) == 1  # two kinds of 16 bits have none in common that numpy knows
        return np.stack(each if same else [one.astype(np.float32) for one in each])

    dequantises = False

    def form(self, weight: Weight, layer: int) -> FrozenWeight | None:
        """Returns the packed form of a layer's matrix as shapes alone, [rows, columns]; None where it is no such."""
        return self._packed(weight, layer, shapes_alone=True)

    def packed(self, weight: Weight, layer: int) -> FrozenWeight:
        """Reads a layer's matrix that has a form; arrays are NumPy's."""
        found = self._packed(weight, layer)
        assert found is not None
        return found

    def _packed(self, weight: Weight, layer: int, *, shapes_alone: bool = False) -> FrozenWeight | None:
        keys = self._keys(weight, layer)
        stored = [bool(self._parts(weight, key)) for key in keys]
        if self._scheme is None or not any(stored):
            return None
        take = self._scheme.form if shapes_alone else self._scheme.read
        tensors = Tensors(self._whole, self._like, self.files.keys())
        try:
            if not all(stored):
                raise UserError(f"{keys[stored.index(False)]}: is stored plainly, expected as those of other experts")
            each = [take(key, tensors) for key in keys]
            return of_experts(keys[0], each) if weight.experts else each[0]
        except UserError as error:
            raise UserError(f"{self.where}: weight {error}") from error

    def _like(self, name: str) -> jax.ShapeDtypeStruct:
        found = self._slice(name, tuple(KINDS))
        return jax.ShapeDtypeStruct(tuple(found.get_shape()), KINDS[found.get_dtype()])

    def _whole(self, name: str) -> np.ndarray:
        """Reads a tensor, of eight bits too, which safetensors does not give to NumPy."""
        like = self._like(name)
        path = self.files[name]
        if not like.size:
            raise UserError(f"{path}: weight {name} has shape {like.shape}, expected numbers")
        if like.dtype != KINDS["F8_E4M3"]:
            return self._slice(name, tuple(KINDS))[...]
        begin, header = self._header(path)
        first, last = header[name]["data_offsets"]
        held = np.memmap(path, np.uint8, "r", begin + first, (last - first,))
        return held.view(like.dtype).reshape(like.shape)

    def _header(self, path: Path) -> tuple[int, dict[str, Any]]:
        if path not in self._headers:
            self._headers[path] = _header(path)
        return self._headers[path]

    def _parts(self, weight: Weight, key: str) -> list[str]:
        """Returns the tensors that a quantised matrix is made of; none of any other weight."""
        if self._scheme is None or not is_packable(weight):
            return []
        return self._scheme.parts(key, self.files.keys())

    @cached_property
    def _opened(self) -> dict[Path, Any]:
        return {path: _open(path) for path in set(self.files.values())}

    @cached_property
    def _base(self) -> str:
        """The prefix that the keys lack of the full names: exports of the bare decoder have no ``model.`` in front."""
        prefix = family_of(self.config).prefix
        return "" if any(key.startswith(prefix) for key in self.files) else prefix

    def _keys(self, weight: Weight, layer: int) -> list[str]:
        return [self._found(key) for key in weight.keys(layer)]

    def _found(self, key: str) -> str:
        """Returns a key as the files spell it."""
        if not self.config.whole:
            return key.removeprefix(self._base)
        names = (
            [_HEADS[0], _HEADS[1]] if key == _HEADS[0] else [one + key.removeprefix("model.") for one in _TEXT_HALVES]
        )
        return next((name for name in names if name in self.files), names[0])

    def _of_no_layer(self, key: str) -> bool:
        """Whether a key is a buffer, or of the tower beside the text half."""
        return bool(_BUFFERS.match(key) or (self.config.whole and TOWER.match(key)))

    def _is_mxfp4(self, weight: Weight, key: str) -> bool:
        """Whether a key is of blocks, as a matrix of all experts in one tensor alone may be."""
        fused = len(weight.shape) == 3 and not weight.experts
        return fused and key not in self.files and key + mxfp4.BLOCKS in self.files

    def _raw(self, key: str) -> Any:
        """Returns a tensor of bytes, of which parts are still to be read."""
        return self._slice(key, ("U8",))

    def _slice(self, key: str, kinds: Sequence[str] = READABLE) -> Any:
        path = self.files[key]
        try:
            found = self._opened[path].get_slice(key)
        except SafetensorError as error:
            raise UserError(f"{path}: weight {key} cannot be read ({error})") from error
        if found.get_dtype() not in kinds:
            raise UserError(f"{path}: weight {key} is {found.get_dtype()}, expected one of {', '.join(kinds)}")
        return found

    def _part(self, key: str, cut: Cut) -> np.ndarray:
        try:
            return self._slice(key)[cut]
        except SafetensorError as error:
            raise UserError(f"{self.files[key]}: weight {key} cannot be read ({error})") from error

    def _tied_head_is_the_table(self) -> bool:
        """Whether a head that config.json calls tied is stored none the less, and equal."""
        head, wanted = next((key for key in _HEADS if key in self.files), None), weights(self.config)[0]
        if not self.config.tie_embeddings or head is None:
            return False
        table = self._keys(wanted, 0)[0]
        if table in self.files and not self._equal(head, table, wanted.shape):
            raise UserError(f"{self.where}: {head} differs from {table}, but config.json says tie_word_embeddings")
        return True

    def _equal(self, one: str, other: str, shape: tuple[int, ...]) -> bool:
        shapes = {tuple(self._slice(key).get_shape()) for key in (one, other)}
        if shapes != {shape}:
            return len(shapes) == 1
        return all(np.array_equal(self._part(one, cut), self._part(other, cut)) for cut in parts(whole(shape)))

    def _no_weights(self) -> UserError:
        pickles = sorted(path.name for path in self.where.iterdir() if path.suffix in REFUSED)
        if pickles:
            return UserError(f"{self.where / pickles[0]}: a pickle that can run code, expected *.safetensors")
        others = sorted(path.name for path in self.where.glob("*.safetensors"))
        if others:
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            return UserError(
                f"{self.where}: holds {shown}, expected model.safetensors, or model.safetensors.index.json, which says "
                "what is in which file"
            )
        return UserError(f"{self.where}: no weights in this folder, expected *.safetensors{_instead(self.where)}")


def read_config(folder: Path) -> ModelConfig:
    """Reads config.json, and the tokens that end a text from generation_config.json where that has them.

    Raises:
        UserError: No config.json, or one that the decoder cannot compute.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: holds an adapter (adapter_config.json), expected a base and adapter={folder}")
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in this folder, expected a Hugging Face model{_instead(folder)}")
    raw = read_json(path)
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    raw = raw if scheme_of(raw) is None else {**raw, SECTION: None}
    if ends is None:
        return from_hf(raw, str(path))
    return with_ends(from_hf({**raw, "eos_token_id": None}, str(path)), ends, str(generation))


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Returns where the numbers of a safetensors file begin, and its header, which safetensors has found sound."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size, json.loads(file.read(size))


def _open(path: Path) -> Any:
    check_regular(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def _instead(folder: Path) -> str:
    """Returns a hint at another model in a folder: its one GGUF file, or its newest checkpoint."""
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) > 1:
        return f", or one of its .gguf files: {', '.join(path.name for path in packed)}"
    steps = [path for path in folder.glob("checkpoint-*") if (path / "config.json").is_file()]
    steps.sort(key=lambda path: (len(path.name), path.name))
    meant = packed[:1] or steps[-1:]
    return f" (did you mean '{meant[0]}'?)" if meant else ""
