"""The README.md beside an exported adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from altojax.adapters.peft_config import AdapterSpec
from jaxrun.plots.markdown import fact_table

_HALF = """
This is an adapter of the language model in a multimodal base, under the names that it has there. On that language model
alone, such as a merged export, it loads with `key_mapping={"model.language_model.": "model."}` in `from_pretrained`.
"""


def model_card(spec: AdapterSpec, facts: Mapping[str, Any], *, whole: str = "") -> str:
    """Returns a model card for the Hugging Face hub.

    Args:
        spec: The adapter.
        facts: More rows by the name to show: hyper-parameters, losses, data.
        whole: Model type of the multimodal model of which the base is the text half, if any.
    """
    base, kind = spec.base_model_name, "AutoModelForImageTextToText" if whole else "AutoModelForCausalLM"
    header = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "altojax", *([f"base_model:adapter:{base}"] if base else [])],
        **({"base_model": base} if base else {}),
    }
    shape = {
        "rank": spec.rank,
        "alpha": spec.alpha,
        "scale": f"{spec.scale:g}" + (" (alpha / sqrt(rank))" if spec.use_rslora else " (alpha / rank)"),
        "dropout": spec.dropout,
        "target modules": spec.target_modules,
        "layers": _layers(spec),
        **({"base while it trained": spec.trained_on} if spec.base_quantization else {}),
    }
    return f"""---
{yaml.safe_dump(header, sort_keys=False).rstrip()}
---

# LoRA adapter for {base or "its base model"}

Trained with altojax. The weights are plain LoRA in float32, in the format of the `peft` library.

{fact_table(shape)}

## Training

{fact_table(facts)}

## Use

```python
from peft import PeftModel
from transformers import {kind}, AutoTokenizer

folder = "."  # where this file is
base = {kind}.from_pretrained({_loading(base)})
model = PeftModel.from_pretrained(base, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```
{_HALF if whole else ""}
`altojax generate {base} adapter=FOLDER prompt="..."` and vLLM's `--lora-modules name=FOLDER` load it as well.
"""


def _loading(base: str) -> str:
    """Arguments of transformers' from_pretrained; a GGUF file is named apart from its folder."""
    path = Path(base)
    return f'"{path.parent}", gguf_file="{path.name}"' if path.suffix == ".gguf" else f'"{base}"'


def _layers(spec: AdapterSpec) -> str:
    choices = set(spec.modules.values())
    if len(choices) > 1:
        return "; ".join(f"{key}: {_numbers(layers)}" for key, layers in spec.modules.items())
    return _numbers(choices.pop())


def _numbers(layers: tuple[int, ...]) -> str:
    whole = len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
