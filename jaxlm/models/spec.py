"""The `model` section of a config: which model, and how it is computed."""

from typing import ClassVar, Literal

import pydantic

from jaxrun.config.config import StrictModel
from jaxrun.config.config_keys import Ours

_QUANTIZED = ("load_in_4bit", "load_in_8bit", "quantization", "quantization_bit", "quantization_config", "use_qlora")
_ATTENTION = ("attn_implementation", "flash_attn", "flash_attention", "use_flash_attention_2", "sdp_attention")


Quantize = Literal["nf4", "nf4_double", "int8", "int4", "keep", "none"]
"""The form of a frozen base's matrices: what they are packed in as they are loaded; that of the files, also of GGUF; or
arrays, also of files that are quantised."""


class ModelSpec(StrictModel):
    """A model to train or to train on.

    Attributes:
        model_name_or_path: A Hugging Face folder, a .gguf file or a hub id.
        dtype: Of the computation; auto is bfloat16 on an accelerator and float32 on a CPU. What is trained is float32.
        remat: What the backward pass computes again to save memory: ``none``, ``dots`` (all but products) or ``full``
            (every block); auto is the least with which a step fits.
        scan_layers: Compile one block for all layers; false compiles each in its place, which takes longer and stacks
            nothing for the backward pass; null is what is faster here.
        random_init: Random weights of the config's shape; for dry runs.
        trust_remote_code: Lets a hub tokenizer run its own code.
    """

    model_name_or_path: str = pydantic.Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    scan_layers: bool | None = None
    random_init: bool = False
    trust_remote_code: bool = False

    foreign_names: ClassVar[dict[str, str | Ours]] = {
        "base_model": "model_name_or_path",
        "model": "model_name_or_path",
        "model_name": "model_name_or_path",
        "model_id": "model_name_or_path",
        "model_path": "model_name_or_path",
        "pretrained_model_name_or_path": "model_name_or_path",
        "name": "model_name_or_path",
        "torch_dtype": "dtype",
        "bf16": Ours("dtype", "it takes bfloat16"),
        "fp16": Ours("dtype", "it takes bfloat16 or float32"),
        "fp32": Ours("dtype", "it takes float32"),
        "gradient_checkpointing": "remat",
        "use_gradient_checkpointing": "remat",
        "gradient_checkpointing_kwargs": "remat",
        **dict.fromkeys(_QUANTIZED, Ours(note="what is trained is kept in float32")),
        **dict.fromkeys(_ATTENTION, Ours(note="the fastest attention that runs here is taken")),
    }
    foreign_values: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
        **dict.fromkeys(("fp32", "float", "torch.float32"), "float32"),
    }
