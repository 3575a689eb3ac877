"""No key that changes the computation elsewhere is passed over here."""

import dataclasses
from typing import ClassVar

import gguf
import numpy as np
import pytest
from transformers import CONFIG_MAPPING

from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.families.settings import Settings
from jaxlm.files.gguf.weights import GGUFFile
from jaxlm.files.hf_config import from_hf, to_hf
from jaxlm.files.unread_keys import IDLE, refuse_uncomputed
from jaxrun.process.errors import UserError

TABLE = np.zeros((256, 64), np.float32)
LLAMA, QWEN2, GPT2 = (to_hf(random_config(family)) for family in ("llama", "qwen2", "gpt2"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_key_of_the_class_is_read_or_known_to_change_nothing(family):
    settings = Settings(to_hf(family.example), "config.json", family.keys)
    refuse_uncomputed(family, settings)
    family.read(settings)
    kind = CONFIG_MAPPING[family.model_type]
    assert {one.name for one in dataclasses.fields(kind)} <= settings.asked | family.idle | IDLE


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (LLAMA | {"is_causal": False}, "is_causal is False, expected True"),
        (QWEN2 | {"is_causal": False}, "is_causal is False, expected True"),
        (LLAMA | {"per_layer_config": {"1": {"num_attention_heads": 2}}}, "per_layer_config is"),
        (GPT2 | {"hidden_size": 96}, "hidden_size is 96, expected 64"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 3}, "layer_types is .*, expected full attention"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu, gelu_pytorch_tanh, gelu_new$"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(raw, words):
    with pytest.raises(UserError, match=f"config.json: {words}"):
        from_hf(raw)


def test_a_new_key_of_the_class_is_refused_unless_it_has_its_default(monkeypatch):
    @dataclasses.dataclass
    class Newer:
        residual_scale: float = 1.0
        attribute_map: ClassVar[dict] = {}

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "llama", Newer)
    from_hf(LLAMA | {"residual_scale": 1.0})
    with pytest.raises(UserError, match=r"residual_scale is 0.5, expected 1.0: other values are not implemented"):
        from_hf(LLAMA | {"residual_scale": 0.5})


def test_what_nobody_reads_is_said_once(capsys):
    for _ in range(2):
        from_hf(LLAMA | {"my_notes": "x", "another": 1, "empty": None}, "once/config.json")
    assert capsys.readouterr().err == "note: once/config.json: ignored, as in transformers: another, my_notes\n"


@pytest.mark.parametrize("kind", ["cwm", "helium", "deepseek_v3", "llamma"])
def test_another_architecture_is_never_taken_for_a_misspelling(kind):
    with pytest.raises(UserError, match=f"model_type is '{kind}', expected one of llama") as caught:
        from_hf(LLAMA | {"model_type": kind})
    assert "did you mean" not in str(caught.value)


def gguf_file(path, architecture, **extra):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in extra.items():
        add = {bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", TABLE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "key", "value", "words"),
    [
        ("gemma3", "attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0, expected None"),
        ("llama", "final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0, expected None"),
        ("llama", "attention.causal", False, "is_causal is False, expected True"),
        ("llama", "logit_scale", 0.5, "llama.logit_scale is 0.5, expected none: it is not implemented"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(architecture, key, value, words, tmp_path):
    with pytest.raises(UserError, match=f"m.gguf: {words}"):
        GGUFFile(gguf_file(tmp_path / "m.gguf", architecture, **{key: value}))


def test_metadata_that_changes_nothing_passes_and_what_nobody_reads_is_said(tmp_path, capsys):
    known = {"attention.causal": True, "attention.clamp_kqv": 0.0, "vocab_size": 256, "rope.dimension_count": 16}
    GGUFFile(gguf_file(tmp_path / "m.gguf", "llama", **known))
    assert not capsys.readouterr().err
    path = gguf_file(tmp_path / "n.gguf", "llama", my_notes=3)
    GGUFFile(path)
    assert capsys.readouterr().err == f"note: {path}: ignored, as in llama.cpp: llama.my_notes\n"
