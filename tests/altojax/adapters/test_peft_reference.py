"""The real peft and transformers compute with our files what we compute, and we with theirs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter, random_base

from altojax.adapters.merge import merge
from altojax.adapters.peft_files import export_adapter, read_adapter
from altojax.inference.adapted_model import AdaptedModel
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.hf_config import to_hf
from jaxlm.files.weights import load_model

TOKENS = np.random.default_rng(3).integers(0, 256, (2, 11))
TOLERANCE = 1e-4
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
EXPERTS_OF_LAYERS = ("layers.0.mlp.experts.gate_up_proj", "layers.2.mlp.experts.gate_up_proj", "experts.down_proj")
CASES = {
    "llama, all linear": ("llama", "all-linear", {}),
    "llama, rslora on some layers of attention": ("llama", r".*layers\.[02]\..*(q|v|o)_proj", {"use_rslora": True}),
    "qwen2, layers of their own": ("qwen2", ["layers.0.self_attn.k_proj", "layers.2.mlp.down_proj", "up_proj"], {}),
    "gemma3, mlp at an odd rank": ("gemma3", ["gate_proj", "down_proj"], {"rank": 5, "alpha": 2.5}),
    "phi3, split names": ("phi3", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], {}),
    "gpt2, all linear": ("gpt2", "all-linear", {}),
    **{f"{family}, all linear": (family, "all-linear", {}) for family in ("cohere2", "olmo3")},
    "glm4, all linear": ("glm4", "all-linear", {}),
    "gpt_oss, experts alone, some layers": ("gpt_oss", [], {"target_parameters": EXPERTS_OF_LAYERS}),
    "qwen3_moe, experts too": ("qwen3_moe", "all-linear", {"target_parameters": EXPERTS, "use_rslora": True}),
    "mixtral, closing experts": ("mixtral", ["q_proj"], {"target_parameters": EXPERTS[1:], "rank": 3}),
    "gpt2, one of two c_proj": ("gpt2", ["attn.c_proj", "c_fc"], {"use_rslora": True}),
}
THEIRS = {
    "llama": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "qwen2": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]},
    "gemma3": {"r": 3, "lora_alpha": 9, "use_rslora": True, "target_modules": r".*layers\.1\..*_proj"},
    "phi3": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]},
    "gpt2": {"r": 4, "lora_alpha": 8, "target_modules": ["c_proj", "c_attn"]},
    "mixtral": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]},
    "qwen3_moe": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "target_parameters": list(EXPERTS)},
    "gpt_oss": {"r": 2, "lora_alpha": 8, "target_parameters": ["experts.gate_up_proj"]},
}


@pytest.fixture(scope="module")
def worked(reference, tmp_path_factory):
    """Our logits and theirs for every case, in one run of the other environment."""
    root = tmp_path_factory.mktemp("peft")
    jobs, ours = [], {}
    for number, (case, (family, targets, options)) in enumerate(CASES.items()):
        config = random_config(family)
        base = random_base(config, seed=number)
        folder = root / f"case{number}"
        folder.mkdir()
        save_model(folder / "base", config, base, dtype=jnp.float32)
        spec, adapter = random_adapter(config, targets, seed=number, **options)
        export_adapter(folder / "adapter", spec, adapter, config, None, {})
        job = {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "tokens": TOKENS.tolist()}
        jobs.append({"do": "adapter", **job, "out": str(folder / "adapter.npy")})
        plain = logits_of(base, TOKENS)
        merge(base, spec, adapter)
        save_model(folder / "merged", config, base, dtype=jnp.float32, max_shard_bytes=50_000)
        jobs.append({"do": "plain", **job, "base": str(folder / "merged"), "out": str(folder / "merged.npy")})
        ours[case] = {"folder": folder, "merged": logits_of(base, TOKENS), "plain": plain}
    for family, lora in THEIRS.items():
        folder = root / family
        paths = {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "out": str(folder / "logits.npy")}
        folder.mkdir()
        jobs.append(
            {"do": "make", "config": to_hf(random_config(family)), "lora": lora, "tokens": TOKENS.tolist(), **paths}
        )
    jobs.append({"do": "fields", "lora": {"r": 8, "target_modules": ["q_proj"]}, "adapter": str(root / "fields")})
    (root / "jobs.json").write_text(json.dumps(jobs))
    reference("load_adapter.py", root / "jobs.json")
    return root, ours


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_logits_with_our_adapter(worked, case):
    found = worked[1][case]
    theirs = np.load(found["folder"] / "adapter.npy")
    assert np.abs(theirs - found["plain"]).max() > 100 * TOLERANCE, "the adapter does nothing"
    np.testing.assert_allclose(found["merged"], theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_logits_with_our_merged_model(worked, case):
    found = worked[1][case]
    assert len(list((found["folder"] / "merged").glob("*.safetensors"))) > 1
    np.testing.assert_allclose(found["merged"], np.load(found["folder"] / "merged.npy"), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", THEIRS)
def test_an_adapter_trained_by_peft_computes_the_same_here(worked, family):
    folder = worked[0] / family
    config, model = load_model(folder / "base", dtype=jnp.float32)
    adapted = AdaptedModel(model, [read_adapter(folder / "adapter", config)])
    found = logits_of(adapted.model, TOKENS, adapted.routing([1, 1]))
    np.testing.assert_allclose(found, np.load(folder / "logits.npy"), atol=TOLERANCE, rtol=0)


def test_transformers_and_peft_compute_the_same_on_the_real_gguf_base(reference, smollm2, tmp_path):
    """30 layers: the bound with an adapter is a share of the largest logit."""
    tokens = np.random.default_rng(0).integers(3, 256, (1, 24)) * 97
    config, model = load_model(smollm2, dtype=jnp.float32)
    spec, adapter = random_adapter(config, ["q_proj", "k_proj", "down_proj"], alpha=16.0)
    export_adapter(tmp_path / "adapter", spec, adapter, config, None, {})
    adapted = AdaptedModel(model, [(spec, adapter)])
    ours, plain = (logits_of(adapted.model, tokens, adapted.routing([slot])) for slot in (1, 0))
    job = {"base": str(smollm2), "adapter": str(tmp_path / "adapter"), "tokens": tokens.tolist()}
    job |= {"out": str(tmp_path / "theirs.npy"), "plain": str(tmp_path / "plain.npy")}
    (tmp_path / "jobs.json").write_text(json.dumps([{"do": "adapter", **job}]))
    reference("load_adapter.py", tmp_path / "jobs.json")
    difference, largest = np.abs(np.load(tmp_path / "plain.npy") - plain).max(), np.abs(ours).max()
    print(f"largest difference of logits {difference:.1e}, of {np.abs(plain).max():.1f}")
    assert difference <= 1e-3
    assert np.abs(ours - plain).max() > 0.05 * largest, "the adapter does nothing"
    np.testing.assert_allclose(ours, np.load(tmp_path / "theirs.npy"), atol=TOLERANCE * largest, rtol=0)


def test_our_config_has_every_field_that_peft_writes(worked):
    theirs = json.loads((worked[0] / "fields" / "adapter_config.json").read_text())
    ours = json.loads((worked[0] / "case0" / "adapter" / "adapter_config.json").read_text())
    assert ours.keys() == theirs.keys()
    told = {"base_model_name_or_path", "inference_mode", "lora_alpha", "r", "target_modules"}
    assert {key: ours[key] for key in ours if key not in told} == {
        key: theirs[key] for key in theirs if key not in told
    }
