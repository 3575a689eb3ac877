"""GGUF files: metadata to `ModelConfig`, quantised tensors to floats, llama.cpp's rearrangements undone.

Source: llama.cpp's ``convert_hf_to_gguf.py``.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxlm.devices.frozen_weight import FrozenWeight, of_experts
from jaxlm.families.gguf import LONGROPE_FACTORS, ROPE_FACTORS, GGUFMetadata
from jaxlm.families.names import Weight
from jaxlm.families.registry import FAMILIES, by_architecture, by_model_type, mixture_of
from jaxlm.files.gguf.file import open_tensors, read_metadata, readable_kinds
from jaxlm.files.hf_config import from_hf
from jaxlm.files.stored import Cut, Stored, turned
from jaxlm.files.unread_keys import check_metadata
from jaxlm.quantised.checkpoints.gguf import KINDS, form_of
from jaxlm.quantised.formats import is_packable
from jaxrun.process.errors import UserError

_TOKEN_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding"))


class GGUFFile:
    """A .gguf file, or several that are parts of one model, memory-mapped.

    Attributes:
        where: The file, the first of its parts.
        config: Of its metadata.
    """

    def __init__(self, where: Path):
        """Reads the metadata.

        Raises:
            UserError: Not a GGUF file, or a model that the decoder cannot compute.
        """
        self.where = where
        families = by_architecture()
        values = read_metadata(where, "general.", "split.", *(f"{name}." for name in families), *_TOKEN_IDS)
        self._tensors = open_tensors(where, values)
        architecture = str(values.get("general.architecture"))
        if architecture not in families:
            known = architecture.replace("-", "_") in {*by_model_type(), *FAMILIES}
            instead = "it is read from its Hugging Face folder alone" if known else "none is computed as another"
            raise UserError(
                f"{where}: architecture is {architecture!r}, expected one of {', '.join(families)}; {instead}"
            )
        self._metadata = GGUFMetadata(where, architecture, values, self._tensors)
        self._family, self._format = families[architecture]
        if self._metadata.get("expert_count") and (mixture := mixture_of(architecture)):
            self._family, self._format = mixture
        self.config = from_hf(self._hf_config(), str(where))
        check_metadata(self._metadata)

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the file lacks; keys that the file holds and nothing needs."""
        needed = {self._key(weight, layer) for weight in wanted for layer in weight.entries}
        spare = {ROPE_FACTORS, *LONGROPE_FACTORS.values(), "output.weight"}
        return sorted(needed - self._tensors.keys()), sorted(self._tensors.keys() - needed - spare)

    def find(self, weight: Weight, layer: int) -> Stored:
        """Looks a tensor up without reading it."""
        key = self._key(weight, layer)
        width_first = tuple(int(size) for size in self._tensors[key].shape)
        turns, shape = weight.path.endswith(".kernel"), width_first[::-1]
        if _is_convolution(weight):
            shape = (*shape[:1], 1, *shape[1:])
        return Stored(key, turned(shape) if turns else shape, turns)

    dequantises = True

    def form(self, weight: Weight, layer: int) -> FrozenWeight | None:
        """Returns the packed form of a layer's matrix as shapes alone, [rows, columns]; None where it is no such."""
        if not is_packable(weight):
            return None
        key = self._key(weight, layer)
        tensor = self._tensors[key]
        inputs, outputs, *experts = (int(size) for size in tensor.shape)
        one = form_of(tensor.tensor_type.name, inputs, outputs, tensor.data.shape[-1])
        return of_experts(key, [one] * experts[0]) if experts and one is not None else one

    def packed(self, weight: Weight, layer: int) -> FrozenWeight:
        """Reads a layer's matrix that has a form; arrays are NumPy's."""
        key = self._key(weight, layer)
        tensor = self._tensors[key]
        make = KINDS[tensor.tensor_type.name]
        if len(weight.shape) > 2:
            return of_experts(key, [make(np.asarray(one)) for one in tensor.data])
        return make(np.asarray(tensor.data[self._outputs(weight, slice(0, weight.shape[-1]))]))

    def read(self, weight: Weight, layer: int, cut: Cut) -> np.ndarray:
        """Reads a part of a tensor in float, as it is in the file; `cut` has a slice for each axis there."""
        key = self._key(weight, layer)
        kind = weight.path.rpartition(".")[2]
        if _is_convolution(weight):
            return self._dequantized(key, (cut[0], cut[2]))[:, None][:, cut[1]]
        part = self._dequantized(key, (self._outputs(weight, cut[0]), *cut[1:]))
        offset = self.config.norm_offset if kind == "scale" else 0.0
        return part - np.float32(offset) if offset else part

    def _outputs(self, weight: Weight, rows: slice) -> Any:
        """Returns where the file has rows of a tensor."""
        found = self._format.rows(weight.path, weight.shape[-1], self.config.num_heads, self.config.num_kv_heads)
        return rows if found is None else found[rows]

    def _key(self, weight: Weight, layer: int) -> str:
        return self._format.key(weight.path, layer)

    def _dequantized(self, key: str, cut: tuple[Any, ...]) -> np.ndarray:
        """The floats at `cut`; blocks lie along the last axis, so that only of the others less is dequantised."""
        tensor = self._tensors[key]
        rows = tensor.data[cut[:-1]]
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            try:
                rows = gguf.quants.dequantize(rows, tensor.tensor_type)
            except NotImplementedError as error:
                raise UserError(
                    f"{self.where}: weight {key} is {tensor.tensor_type.name}, which cannot be dequantised; "
                    f"expected one of {', '.join(readable_kinds())}"
                ) from error
        return np.asarray(rows[..., cut[-1]])

    def _hf_config(self) -> dict[str, Any]:
        """The config.json that this model would have."""
        experts = self._metadata.get("expert_count")
        if experts and not self._family.example.routed:
            raise UserError(f"{self.where}: a mixture of {experts} experts, expected a dense model")
        tokens = self._metadata.values
        table = self._tensors.get("token_embd.weight")
        ends = [tokens.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return {
            "model_type": self._family.model_type,
            "vocab_size": None if table is None else int(table.shape[1]),
            "tie_word_embeddings": self._is_tied(),
            "bos_token_id": tokens.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
            "pad_token_id": tokens.get("tokenizer.ggml.padding_token_id"),
            "is_causal": self._metadata.get("attention.causal"),
            **{f"{name}_logit_softcapping": self._cap(name) for name in ("attn", "final")},
            **self._format.read(self._metadata),
        }

    def _cap(self, name: str) -> float | None:
        """Returns the bound of the logits of attention or of the head; 0 is none."""
        return self._metadata.get(f"{name}_logit_softcapping") or None

    def _is_tied(self) -> bool:
        """Whether there is no head of its own, or one that repeats the table."""
        head, table = self._tensors.get("output.weight"), self._tensors.get("token_embd.weight")
        if head is None or table is None:
            return True
        return head.tensor_type == table.tensor_type and np.array_equal(head.data, table.data)


def _is_convolution(weight: Weight) -> bool:
    """Whether a weight is [channels, 1, taps], which GGUF has without the 1."""
    return weight.path.endswith(".conv.weight")
