"""Folders of checkpoints whose projections are quantised as their tools do it, and the matrices that they stand for."""

import json
import shutil
from functools import partial

import ml_dtypes
import numpy as np
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from jaxlm.files.hf_folder import KINDS
from jaxlm.quantised.nf4 import TABLES

GROUP = 16
F8 = ml_dtypes.float8_e4m3fn


def int32(numbers, axis, order=range(8)):
    """Packs numbers of four bits eight to an int32 along an axis; `order` has the places from the lowest bits up."""
    apart = np.moveaxis(numbers, axis, -1).astype(np.uint32)
    apart = apart.reshape(*apart.shape[:-1], -1, 8)
    found = sum(apart[..., place] << np.uint32(4 * at) for at, place in enumerate(order))
    return np.ascontiguousarray(np.moveaxis(found.astype(np.uint32).view(np.int32), -1, axis))


def grouped(random, inputs, outputs):
    """Numbers [in, out], zero points and scales [group, out], and the matrix [out, in] that they are."""
    numbers = random.integers(0, 16, (inputs, outputs))
    zero = random.integers(1, 16, (inputs // GROUP, outputs))
    scale = random.uniform(0.01, 0.1, zero.shape).astype(np.float16)
    spread = [np.repeat(one, GROUP, axis=0).astype(np.float32) for one in (zero, scale)]
    return numbers, zero, scale, ((numbers - spread[0]) * spread[1]).T.astype(np.float32)


def gptq(random, of, outputs, inputs, less=1):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    tensors = {"qweight": int32(numbers, 0), "qzeros": int32(zero - less, 1), "scales": scale}
    tensors["g_idx"] = (np.arange(inputs) // GROUP).astype(np.int32)
    return {of + name: one for name, one in tensors.items()}, dense


def gptq_v2(random, of, outputs, inputs):
    return gptq(random, of, outputs, inputs, less=0)


def awq(random, of, outputs, inputs):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {"qweight": int32(numbers, 1, order), "qzeros": int32(zero, 1, order), "scales": scale}
    return {of + name: one for name, one in tensors.items()}, dense


def pack_quantized(random, of, outputs, inputs):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    tensors = {"weight_packed": int32(numbers.T, 1), "weight_zero_point": int32(zero.T, 0)}
    tensors |= {"weight_scale": np.ascontiguousarray(scale.T), "weight_shape": np.array([outputs, inputs], np.int64)}
    return {of + name: one for name, one in tensors.items()}, dense


def pack_symmetric(random, of, outputs, inputs):
    numbers, _, scale, _ = grouped(random, inputs, outputs)
    tensors = {"weight_packed": int32(numbers.T, 1), "weight_scale": np.ascontiguousarray(scale.T)}
    tensors["weight_shape"] = np.array([outputs, inputs], np.int64)
    dense = (numbers - 8).T * np.repeat(scale.T, GROUP, axis=1).astype(np.float32)
    return {of + name: one for name, one in tensors.items()}, dense.astype(np.float32)


def eight(random, outputs, inputs):
    return random.normal(0, 30, (outputs, inputs)).astype(F8)


def fp8_blocks(random, of, outputs, inputs, block=(48, 32)):
    values, blocks = eight(random, outputs, inputs), (-(-outputs // block[0]), -(-inputs // block[1]))
    scale = random.uniform(0.01, 0.1, blocks).astype(np.float32)
    spread = np.repeat(np.repeat(scale, block[0], axis=0), block[1], axis=1)[:outputs, :inputs]
    return {f"{of}weight": values, f"{of}weight_scale_inv": scale}, values.astype(np.float32) * spread


def fp8_rows(random, of, outputs, inputs):
    values, scale = eight(random, outputs, inputs), random.uniform(0.01, 0.1, (outputs, 1)).astype(ml_dtypes.bfloat16)
    return {f"{of}weight": values, f"{of}weight_scale": scale}, values.astype(np.float32) * scale.astype(np.float32)


def fp8_whole(random, of, outputs, inputs):
    values, scale = eight(random, outputs, inputs), np.array([0.03], np.float32)
    return {f"{of}weight": values, f"{of}weight_scale": scale}, values.astype(np.float32) * scale


def nf4(random, of, outputs, inputs):
    """Scales quantised again, in blocks of 256."""
    numbers = random.integers(0, 16, (outputs * inputs // 2, 2)).astype(np.uint8)
    places = random.integers(0, 256, outputs * inputs // GROUP).astype(np.uint8)
    table, largest = np.linspace(-1, 1, 256, dtype=np.float32), random.uniform(0.1, 0.2, -(-len(places) // 256))
    largest = largest.astype(np.float32)
    said = {"quant_type": "nf4", "blocksize": GROUP, "shape": [outputs, inputs], "nested_blocksize": 256}
    state = json.dumps({**said, "nested_offset": 0.5}).encode()
    tensors = {"": numbers[:, :1] << 4 | numbers[:, 1:], ".absmax": places, ".quant_map": TABLES["nf4"]}
    tensors |= {".nested_absmax": largest, ".nested_quant_map": table}
    tensors[".quant_state.bitsandbytes__nf4"] = np.frombuffer(state, np.uint8)
    scale = table[places] * np.repeat(largest, 256)[: len(places)] + np.float32(0.5)
    dense = (TABLES["nf4"][numbers].reshape(-1, GROUP) * scale[:, None]).reshape(outputs, inputs)
    return {f"{of}weight{name}": one for name, one in tensors.items()}, dense


def compressed(format, **weights):
    groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    said = {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed"}
    return {**said, "ignore": ["lm_head"], "config_groups": groups}


INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": GROUP}
FLOAT8 = {"type": "float", "num_bits": 8}
FORMATS = {
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "gptq-v2": (gptq_v2, {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm", "group_size": GROUP}),
    "int4": (pack_quantized, compressed("pack-quantized", **INT4, symmetric=False)),
    "int4-symmetric": (pack_symmetric, compressed("pack-quantized", **INT4, symmetric=True)),
    "fp8": (fp8_blocks, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 32]}),
    "fp8-128": (
        partial(fp8_blocks, block=(128, 128)),
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    ),
    "fp8-rows": (fp8_rows, compressed("float-quantized", **FLOAT8, strategy="channel")),
    "fp8-whole": (fp8_whole, compressed("float-quantized", **FLOAT8, strategy="tensor")),
}


def quantised(plain, folder, name, **changes):
    """A folder whose projections are in a format, and the matrices that they stand for."""
    make, section = FORMATS[name]
    shutil.copytree(plain, folder)
    random, held, dense = np.random.default_rng(0), {}, {}
    for key, value in load_file(plain / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            tensors, dense[key] = make(random, key.removesuffix("weight"), *value.shape)
            held |= tensors
        else:
            held[key] = value
    save_file(held | changes, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return dense


def tensors_of(folder):
    """All tensors of such a folder, those of eight bits too."""
    found = dict(deserialize((folder / "model.safetensors").read_bytes()))
    return {key: np.frombuffer(one["data"], KINDS[one["dtype"]]).reshape(one["shape"]) for key, one in found.items()}
