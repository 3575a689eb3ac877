"""The text half of a multimodal folder: loaded, adapted and written alone as transformers and peft compute it."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter
from safetensors.numpy import load_file, save_file

from altojax.adapters.merge import merge
from altojax.adapters.peft_files import export_adapter, read_adapter
from jaxlm.families.names import weights
from jaxlm.files.hf import save_model
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.weights import load_model
from jaxrun.process.errors import UserError

WHOLES = ("gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_vl")


def tolerance(logits) -> float:
    return 1e-4 * max(1.0, float(logits.std()))


@pytest.fixture(scope="module")
def made(reference, tmp_path_factory):
    """What we and they compute, by the whole's model type."""
    root, found = tmp_path_factory.mktemp("wholes"), {}
    reference("whole_models.py", "make", root)
    for number, name in enumerate(WHOLES):
        config, model = load_model(root / name, dtype=jnp.float32)
        with np.load(root / f"{name}.npz") as theirs:
            tokens, plain = theirs["tokens"], theirs["logits"]
        ours = logits_of(model, tokens)
        save_model(root / f"{name}-text", config, model, dtype=jnp.float32)
        spec, adapter = random_adapter(config, ["q_proj", "v_proj", "down_proj"], seed=number)
        export_adapter(root / f"{name}-adapter", spec, adapter, config, None, {})
        merge(model, spec, adapter)
        found[name] = {"root": root, "config": config, "plain": plain, "ours": ours, "merged": logits_of(model, tokens)}
    reference("whole_models.py", "adapt", root)
    return found


@pytest.mark.parametrize("name", WHOLES)
def test_the_text_half_computes_what_the_whole_computes_of_text(made, name):
    theirs = made[name]["plain"]
    difference = np.abs(made[name]["ours"] - theirs).max()
    print(f"{name}: largest difference of logits {difference:.1e}, standard deviation {theirs.std():.2f}")
    assert difference <= tolerance(theirs)


@pytest.mark.parametrize("name", WHOLES)
def test_peft_puts_an_adapter_onto_the_whole_and_onto_the_text_class(made, name):
    found = made[name]
    with np.load(found["root"] / f"{name}-adapted.npz") as theirs:
        assert np.abs(theirs["whole"] - found["plain"]).max() > 100 * tolerance(found["plain"]), "it does nothing"
        for kind in ("whole", "half"):
            assert np.abs(found["merged"] - theirs[kind]).max() <= tolerance(found["plain"]), kind


def test_adapters_under_the_names_of_older_and_of_text_classes_are_read(made, tmp_path):
    root, config = made["qwen3_vl"]["root"], made["qwen3_vl"]["config"]
    _, expected = read_adapter(root / "qwen3_vl-adapter", config)
    stored = load_file(root / "qwen3_vl-adapter" / "adapter_model.safetensors")
    for name in ("adapter_config.json",):
        (tmp_path / name).write_bytes((root / "qwen3_vl-adapter" / name).read_bytes())
    for prefix in ("language_model.model.", "model."):
        renamed = {key.replace("model.language_model.", prefix): value for key, value in stored.items()}
        save_file(renamed, tmp_path / "adapter_model.safetensors")
        _, found = read_adapter(tmp_path, config)
        for key, halves in expected.items():
            np.testing.assert_array_equal(found[key][0], halves[0])
    with pytest.raises(UserError, match=r"has no projection 'model\.visual\.layers\.0\."):
        renamed = {key.replace("language_model", "visual"): value for key, value in stored.items()}
        save_file(renamed, tmp_path / "adapter_model.safetensors")
        read_adapter(tmp_path, config)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_weights_are_found_under_the_names_of_every_version(made, prefix, tmp_path):
    root = made["mistral3"]["root"]
    stored = load_file(root / "mistral3" / "model.safetensors")
    head = "language_model.lm_head.weight" if prefix.startswith("language_model") else "lm_head.weight"
    renamed = {key.replace("language_model.model.", prefix): value for key, value in stored.items()}
    renamed[head] = renamed.pop("language_model.lm_head.weight")
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((root / "mistral3" / "config.json").read_bytes())
    folder = HFFolder(tmp_path)
    assert folder.missing(weights(folder.config)) == ([], [])
    save_file({**renamed, "model.other.weight": renamed[head]}, tmp_path / "model.safetensors")
    assert HFFolder(tmp_path).missing(weights(folder.config)) == ([], ["model.other.weight"])


def test_the_card_loads_the_whole_and_says_how_the_text_class_takes_it(made):
    card = (made["qwen3_vl"]["root"] / "qwen3_vl-adapter" / "README.md").read_text()
    assert "base = AutoModelForImageTextToText.from_pretrained" in card
    assert 'key_mapping={"model.language_model.": "model."}' in card


def test_what_is_written_of_a_text_half_is_the_text_model_alone(made):
    found = made["qwen2_5_vl"]
    written = found["root"] / "qwen2_5_vl-text"
    raw = json.loads((written / "config.json").read_text())
    assert raw["model_type"] == "qwen2" and "vision_config" not in raw
    assert not [key for key in load_file(written / "model.safetensors") if "language_model" in key]
    assert HFFolder(written).config == replace(found["config"], whole="")
