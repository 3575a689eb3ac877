"""Bases quantised by others, as classes of transformers that compute in float32."""

import json
from pathlib import Path

import torch
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def load_quantised(folder: Path, method: dict) -> torch.nn.Module:
    """Returns the model of a folder whose config.json has this `quantization_config`.

    Transformers reads bitsandbytes', fp8 and compressed-tensors; the latter package itself makes its own of AWQ. What
    runs GPTQ does not come for CPUs: its matrices are computed as its authors describe them, and given as plain ones.
    """
    options: dict = {"dtype": torch.float32, "device_map": "cpu"}
    if method["quant_method"] in ("awq", "gptq"):
        folder = (_converted if method["quant_method"] == "awq" else _plain)(folder, method)
    if method["quant_method"] in ("awq", "compressed-tensors"):
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), f"{folder}: {report}"
    return model.eval()


def _converted(folder: Path, method: dict) -> Path:
    converter = AutoAWQConverter.from_autoawq_config(method)
    tensors = converter.process(load_file(folder / "model.safetensors"))
    return _written(folder, tensors, converter.update_config(None).to_dict())


def _plain(folder: Path, method: dict) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for name in [key.removesuffix("qweight") for key in tensors if key.endswith("qweight")]:
        parts = [tensors.pop(name + part) for part in ("qweight", "qzeros", "scales", "g_idx")]
        tensors[f"{name}weight"] = _of_gptq(*parts, less=method.get("checkpoint_format", "gptq") == "gptq")
    return _written(folder, tensors, None)


def _of_gptq(qweight, qzeros, scales, g_idx, less):
    """As `dequantize_weight` of GPTQModel: of eight numbers in an int32 the lowest bits are the first."""
    shifts = torch.arange(0, 32, 4)
    numbers = (qweight[:, None, :] >> shifts[:, None] & 15).flatten(0, 1)
    zeros = (qzeros[:, :, None] >> shifts & 15).flatten(1) + int(less)
    return ((numbers - zeros[g_idx]) * scales[g_idx].float()).T.contiguous()


def _written(folder: Path, tensors: dict, method: dict | None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    out = folder / "read"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config | ({"quantization_config": method} if method else {})))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
