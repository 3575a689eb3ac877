"""Parameters of experts are named as PEFT names them, and are where PEFT looks for them."""

import json

import numpy as np
import pytest
from adapters import random_adapter
from safetensors.numpy import load_file, save_file

from altojax.adapters.peft_files import export_adapter, read_adapter
from altojax.adapters.target_parameters import match_parameters
from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError

OPENS, CLOSES = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
EVERY = (0, 1, 2)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["experts.down_proj"], {CLOSES: EVERY}),
        ([OPENS, CLOSES], {OPENS: EVERY, CLOSES: EVERY}),
        (["layers.1.mlp.experts.down_proj", "model.layers.2.mlp.experts.gate_up_proj"], {OPENS: (2,), CLOSES: (1,)}),
    ],
)
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_ends_of_paths_name_parameters_of_experts(family, names, wanted):
    assert match_parameters(names, random_config(family)) == wanted


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("llama", CLOSES, r"'mlp.experts.down_proj' is of experts, and this model \(llama\) has none"),
        (
            "qwen3_moe",
            "experts.down_prj",
            "no parameter 'experts.down_prj', expected mlp.experts.gate_up",
        ),
        ("qwen3_moe", "q_proj.weight", "is the matrix of a module; expected it in target_modules, as q_proj"),
        ("gpt_oss", "experts.down_proj_bias", "expected mlp.experts.gate_up_proj or mlp.experts.down_proj"),
        ("gpt_oss", "router.weight", "expected mlp.experts.gate_up_proj or mlp.experts.down_proj"),
    ],
)
def test_another_name_is_refused_with_what_can_be_named(family, name, said):
    with pytest.raises(UserError, match=said):
        match_parameters([name], random_config(family))


def test_a_parameter_alone_in_its_layer_is_where_peft_wraps_it_first(tmp_path):
    config = random_config("gpt_oss")
    names = ("layers.0.mlp.experts.gate_up_proj", "layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj")
    spec, adapter = random_adapter(config, [], target_parameters=names)
    export_adapter(tmp_path / "a", spec, adapter, config, None, {})
    shapes = {
        name.removeprefix("base_model.model.model.layers.").removesuffix(".weight"): array.shape
        for name, array in load_file(tmp_path / "a/adapter_model.safetensors").items()
    }
    assert shapes == {
        "0.mlp.experts.lora_A": (16, 64),
        "0.mlp.experts.lora_B": (64, 16),
        "1.mlp.experts.base_layer.lora_A": (16, 64),
        "1.mlp.experts.base_layer.lora_B": (64, 16),
        "1.mlp.experts.lora_A": (16, 32),
        "1.mlp.experts.lora_B": (64, 16),
    }
    fields = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert fields["target_modules"] is None
    assert fields["target_parameters"] == sorted(f"model.{name}" for name in names)
    again, arrays = read_adapter(tmp_path / "a", config)
    assert again.modules == spec.modules
    for key, halves in adapter.items():
        for one, other in zip(halves, arrays[key], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("entry", "instead", "said"),
    [
        (
            "lora_A",
            None,
            "no weights of model.layers.2.mlp.experts, which target_parameters of adapter_config.json names",
        ),
        ("lora_A", (8, 64), r"has shape \(8, 64\), expected \(24, 32\) for this model and r=4"),
        ("lora_B", (64, 4), r"has shape \(64, 4\), expected \(64, 24\) for this model and r=4"),
    ],
)
def test_a_file_without_an_adapter_that_its_config_names_is_refused(tmp_path, entry, instead, said):
    config = random_config("qwen3_moe")
    spec, adapter = random_adapter(config, ["q_proj"], target_parameters=(CLOSES,))
    export_adapter(tmp_path / "a", spec, adapter, config, None, {})
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    own = f"base_model.model.model.layers.2.mlp.experts.{entry}.weight"
    if instead is None:
        tensors = {name: array for name, array in tensors.items() if "layers.2.mlp" not in name}
    else:
        tensors[own] = np.zeros(instead, np.float32)
    save_file(tensors, path)
    with pytest.raises(UserError, match=said):
        read_adapter(tmp_path / "a", config)
