"""An exported adapter says what it is, comes back as it was, and nothing wrong is read in silence."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from adapters import random_adapter, random_base
from safetensors.numpy import load_file, save_file
from small_disk import room_of

from altojax.adapters import peft_files
from altojax.adapters.merge import merge
from altojax.adapters.model_card import model_card
from altojax.adapters.peft_files import export_adapter, read_adapter
from jaxlm.families.registry import random_config
from jaxlm.files.tensor_file import write_tensors
from jaxrun.process.errors import UserError

LLAMA = random_config("llama")


@pytest.fixture
def exported(tmp_path):
    spec, adapter = random_adapter(LLAMA, ["q_proj", "layers.1.mlp.down_proj"])
    export_adapter(tmp_path / "adapter", spec, adapter, LLAMA, None, {})
    return tmp_path / "adapter"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", r".*[.](1|2)[.].*proj", ["layers.0.mlp.up_proj", "h.0.attn.c_attn"]])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, family, targets):
    config = random_config(family)
    if isinstance(targets, list):
        targets = targets[family == "gpt2" :][:1]
    spec, adapter = random_adapter(config, targets, rank=3, alpha=5.0, use_rslora=True)
    export_adapter(tmp_path / "deep" / "adapter", spec, adapter, config, None, {"validation loss": 1.5})
    again, reloaded = read_adapter(tmp_path / "deep" / "adapter", config)
    assert (again.modules, again.scale, again.rank) == (spec.modules, spec.scale, spec.rank)
    assert reloaded.keys() == adapter.keys()
    for key, halves in adapter.items():
        for mine, theirs in zip(halves, reloaded[key], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_the_config_names_its_target_modules_and_layers(tmp_path):
    spec, adapter = random_adapter(LLAMA, r".*layers\.[02]\..*(q|v)_proj")
    export_adapter(tmp_path / "adapter", spec, adapter, LLAMA, None, {})
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["q_proj", "v_proj"]
    assert (fields["layers_to_transform"], fields["layers_pattern"]) == ([0, 2], "layers")
    assert fields["inference_mode"] is True and fields["task_type"] == "CAUSAL_LM" and fields["bias"] == "none"


def test_the_weights_are_named_and_shaped_as_peft_has_them(exported):
    tensors = load_file(exported / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 64)
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (64, 4)
    assert len(tensors) == 2 * (LLAMA.num_layers + 1)


def test_the_card_tells_facts_and_survives_awkward_values(tmp_path):
    spec, adapter = random_adapter(LLAMA, r".*\.(q|v)_proj")
    export_adapter(tmp_path / "a", spec, adapter, LLAMA, None, {"learning rate": 2e-4, "data": "a|b\nc"})
    card = (tmp_path / "a" / "README.md").read_text()
    assert "base_model: base" in card and "| learning rate | 0.0002 |" in card and r"a\|b c" in card


def test_the_card_says_how_to_load_a_gguf_base():
    spec, _ = random_adapter(LLAMA, ["q_proj"])
    card = model_card(replace(spec, base_model_name="models/base.Q4.gguf"), {})
    assert 'from_pretrained("models", gguf_file="base.Q4.gguf")' in card


def test_a_file_that_is_not_read_back_to_the_bit_never_takes_the_place_of_an_older_one(exported, monkeypatch):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    spec, adapter = random_adapter(LLAMA, ["o_proj"])

    def write_another(path, tensors):
        name = min(tensors)
        write_tensors(path, {**tensors, name: np.nextafter(tensors[name], np.float32(np.inf))})

    monkeypatch.setattr(peft_files, "write_tensors", write_another)
    with pytest.raises(ValueError, match=r"self_attn\.o_proj was read back with other numbers"):
        export_adapter(exported, spec, adapter, LLAMA, None, {})
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    with pytest.raises(ValueError, match="other numbers"):
        export_adapter(exported.parent / "new", spec, adapter, LLAMA, None, {})
    assert not (exported.parent / "new").exists()


def test_an_adapter_without_room_is_refused_in_one_line_and_the_older_one_stays(exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    spec, adapter = random_adapter(LLAMA, ["o_proj"])
    with room_of(1000), pytest.raises(UserError, match="file too large for this file system or limit"):
        export_adapter(exported, spec, adapter, LLAMA, None, {})
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_weights_outside_the_described_layers_are_not_dropped_in_silence(tmp_path):
    spec, adapter = random_adapter(LLAMA, ["layers.0.self_attn.o_proj"])
    adapter["self_attn.o_proj"][1][2] = 1.0
    with pytest.raises(ValueError, match="said to be adapted"):
        export_adapter(tmp_path / "adapter", spec, adapter, LLAMA, None, {})


def test_bfloat16_adapters_are_read(exported):
    import ml_dtypes

    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    before = read_adapter(exported, LLAMA)[1]["self_attn.q_proj"][0]
    edit_tensors(exported, halve)
    after = read_adapter(exported, LLAMA)[1]["self_attn.q_proj"][0]
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_some_later_kind": True}, "use_some_later_kind"),
        ({"r": 0}, "r is 0"),
        ({"r": 8}, "shape"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"target_modules": ["q_proj"]}, "does not name"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj"]}, "no weights of"),
    ],
)
def test_what_is_not_plain_lora_for_this_model_is_refused_in_one_line(exported, changes, said):
    edit_config(exported, **changes)
    with pytest.raises(UserError, match=str(exported)) as refused:
        read_adapter(exported, LLAMA)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_adapter_without_named_targets_is_what_its_file_holds(exported):
    edit_config(exported, target_modules=None)
    assert read_adapter(exported, LLAMA)[0].modules == {"self_attn.q_proj": (0, 1, 2), "mlp.down_proj": (1,)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(next(name for name in t if "lora_B" in name)), "missing"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((4, 64), np.float32)}), "lm_head"),
        (lambda t: t.update({"q_proj.weight": np.zeros(1, np.float32)}), "expected base_model.model."),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_a_weights_file_that_does_not_fit_is_refused(exported, change, said):
    edit_tensors(exported, change)
    with pytest.raises(UserError, match=said):
        read_adapter(exported, LLAMA)


def test_an_adapter_for_another_model_is_refused_with_the_nearest_module(exported):
    with pytest.raises(UserError, match=r"no projection 'model.layers.0.self_attn.q_proj'|'model.layers.1.mlp"):
        read_adapter(exported, random_config("gpt2"))


def test_pickles_are_never_opened(exported):
    (exported / "adapter_model.safetensors").rename(exported / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin may run code"):
        read_adapter(exported, LLAMA)


def test_of_a_trainers_folder_the_newest_checkpoint_is_named(exported, tmp_path):
    for step in (9, 100):
        shutil.copytree(exported, tmp_path / "out" / f"checkpoint-{step}")
    with pytest.raises(UserError, match=r"expected the folder of a LoRA adapter \(did you mean '.*checkpoint-100'\?\)"):
        read_adapter(tmp_path / "out", LLAMA)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_adapter_config_is_one_line(exported, text):
    (exported / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_adapter(exported, LLAMA)


def test_a_truncated_weights_file_is_one_line(exported):
    path = exported / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable safetensors"):
        read_adapter(exported, LLAMA)


def test_merging_adds_the_scaled_product_to_the_adapted_layers_alone():
    model = random_base(LLAMA)
    before = np.asarray(model.layers.self_attn.q_proj.kernel[...])
    untouched = np.asarray(model.layers.mlp.up_proj.kernel[...])
    spec, adapter = random_adapter(LLAMA, ["layers.1.self_attn.q_proj"], rank=2, alpha=6.0)
    merge(model, spec, adapter)
    a, b = adapter["self_attn.q_proj"]
    after = np.asarray(model.layers.self_attn.q_proj.kernel[...])
    np.testing.assert_allclose(after[1], before[1] + 3.0 * a[1] @ b[1], atol=1e-6)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(np.asarray(model.layers.mlp.up_proj.kernel[...]), untouched)


def test_merged_weights_keep_their_dtype_and_are_rounded_once():
    import jax.numpy as jnp

    model = random_base(LLAMA, dtype=jnp.bfloat16)
    before = np.asarray(model.layers.self_attn.q_proj.kernel[...]).astype(np.float32)
    spec, adapter = random_adapter(LLAMA, ["q_proj"])
    merge(model, spec, adapter)
    after = model.layers.self_attn.q_proj.kernel[...]
    a, b = adapter["self_attn.q_proj"]
    assert after.dtype == jnp.bfloat16
    expected = (before + np.float32(spec.scale) * (a @ b)).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_allclose(np.asarray(after).astype(np.float32), expected, rtol=2**-7)
