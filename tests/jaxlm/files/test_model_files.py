"""Models written here load here bit for bit and in transformers, and damage is named."""

import json
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import UNLIKE, every_family
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import ROWS, logits, tiny, tokens, variables

from jaxlm.families.registry import random_config
from jaxlm.files import stored
from jaxlm.files.hf import sampling_defaults, save_model, write_weights
from jaxlm.files.hub import find_model
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models.functional import weights_by_path
from jaxrun.process.errors import UserError


def assert_same(one, other):
    one, other = variables(one), variables(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        assert value.dtype == other[path].dtype
        assert value.tobytes() == other[path].tobytes(), path


@every_family
def test_a_saved_model_loads_bit_for_bit_whole_or_in_shards(family, tmp_path):
    config, model = random_config(family), tiny(family)
    save_model(tmp_path / "whole", config, model, dtype=jnp.float32)
    save_model(tmp_path / "shards", config, nnx.state(model), dtype=jnp.float32, max_shard_bytes=50_000)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    largest = max(value.nbytes for shard in shards for value in load_file(shard).values())
    assert len(shards) > 3
    assert all(sum(v.nbytes for v in load_file(shard).values()) <= max(50_000, largest) for shard in shards)
    for folder in ("whole", "shards"):
        read, loaded = load_model(tmp_path / folder, dtype=jnp.float32)
        assert read == config == read_model_config(tmp_path / folder)
        assert_same(loaded, model)


def test_transformers_computes_the_same_from_a_saved_model(reference, tmp_path):
    """Of every family it is said in tests/jaxlm/models/test_parity.py that our files are those of transformers."""
    families = (*UNLIKE, "qwen2", "qwen3", "gpt_oss")
    given, ours, folders = {}, {}, []
    for family in families:
        folders.append(tmp_path / family)
        shard = 50_000 if family == "qwen3" else 10**9
        save_model(folders[-1], random_config(family), tiny(family), dtype=jnp.float32, max_shard_bytes=shard)
        if family == "qwen2":
            leave_behind(folders[-1])
        given[family] = tokens(*ROWS).astype(np.int64)
        ours[family] = logits(tiny(family), given[family])
    np.savez(tmp_path / "tokens.npz", **given)
    reference("compute_logits.py", tmp_path / "tokens.npz", tmp_path / "out.npz", *folders)
    with np.load(tmp_path / "out.npz") as theirs:
        for family in families:
            difference = np.abs(theirs[family] - ours[family]).max()
            print(f"{family}: largest difference of logits {difference:.1e}")
            assert difference <= 1e-4


def test_half_precision_is_rounded_once_and_kept(tmp_path):
    config, model = random_config("qwen2"), tiny("qwen2")
    save_model(tmp_path / "half", config, model, dtype=jnp.bfloat16)
    _, half = load_model(tmp_path / "half", dtype=jnp.bfloat16)
    _, full = load_model(tmp_path / "half", dtype=jnp.float32)
    for path, value in variables(model).items():
        rounded = value.astype(jnp.bfloat16)
        assert variables(half)[path].tobytes() == rounded.tobytes()
        np.testing.assert_array_equal(variables(full)[path], rounded.astype(np.float32))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_saving_replaces_an_older_model_as_a_whole(tmp_path):
    save_model(tmp_path / "m", random_config("qwen3"), tiny("qwen3"), dtype=jnp.float32, max_shard_bytes=50_000)
    save_model(tmp_path / "m", random_config("gpt2"), tiny("gpt2"), dtype=jnp.float32)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert_same(load_model(tmp_path / "m", dtype=jnp.float32)[1], tiny("gpt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("ends", "said"), [([9999, 1], "[9999, 1], expected tokens of the"), ("</s>", "'</s>', expected a token id")]
)
def test_ends_of_a_text_that_are_no_tokens_blame_the_file_that_has_them(tmp_path, ends, said):
    save_model(tmp_path / "m", random_config("llama"), tiny("llama"), dtype=jnp.float32)
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "m", dtype=jnp.float32)
    assert str(caught.value).startswith(f"{tmp_path / 'm' / 'generation_config.json'}: eos_token_id is {said}")


def test_loading_holds_a_part_at_a_time(tmp_path, monkeypatch):
    config, sizes, put = random_config("llama"), [], jax.device_put
    save_model(tmp_path / "m", config, tiny("llama"), dtype=jnp.float32)
    monkeypatch.setattr(jax, "device_put", lambda x, *where, **how: sizes.append(x.size) or put(x, *where, **how))
    monkeypatch.setattr(stored, "PART_SIZE", most := config.hidden_size * config.intermediate_size)
    load_model(tmp_path / "m", dtype=jnp.bfloat16)
    with safe_open(tmp_path / "m" / "model.safetensors", "numpy") as file:
        held = [int(np.prod(file.get_slice(key).get_shape())) for key in file.keys()]  # noqa: SIM118
    assert sum(sizes) == sum(held) and max(sizes) == most


def test_random_weights_need_the_config_alone_and_follow_the_seed(tmp_path):
    save_model(tmp_path / "m", random_config("qwen3"), tiny("qwen3"), dtype=jnp.float32)
    (tmp_path / "m" / "model.safetensors").unlink()
    first = load_model(tmp_path / "m", dtype=jnp.bfloat16, random_init=True, seed=3)[1]
    again = load_model(tmp_path / "m", dtype=jnp.bfloat16, random_init=True, seed=3)[1]
    other = load_model(tmp_path / "m", dtype=jnp.bfloat16, random_init=True, seed=4)[1]
    assert_same(first, again)
    assert (first.head_kernel() != other.head_kernel()).any()
    assert abs(float(jnp.std(first.head_kernel().astype(jnp.float32))) - 0.02) < 0.001


@pytest.fixture
def saved(tmp_path) -> Path:
    save_model(tmp_path / "m", random_config("qwen2"), tiny("qwen2"), dtype=jnp.float32)
    return tmp_path / "m"


def change(folder: Path, edit) -> None:
    """Edits the weights of a saved model in place."""
    held = load_file(folder / "model.safetensors")
    edit(held)
    save_file({key: np.ascontiguousarray(value) for key, value in held.items()}, folder / "model.safetensors")


def refusal(source, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source, dtype=jnp.float32, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_left_over_or_misshapen_weight_is_named(saved):
    original = (saved / "model.safetensors").read_bytes()
    change(saved, lambda held: held.pop("model.layers.1.mlp.up_proj.weight"))
    assert "weight model.layers.1.mlp.up_proj.weight is missing" in refusal(saved)
    (saved / "model.safetensors").write_bytes(original)
    change(saved, lambda held: held.update({"model.layers.3.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}))
    assert "weight model.layers.3.mlp.up_proj.weight is unexpected" in refusal(saved)
    (saved / "model.safetensors").write_bytes(original)
    change(saved, lambda held: held.update({"model.norm.weight": np.zeros(65, np.float32)}))
    assert "weight model.norm.weight has shape (65,), expected (64,)" in refusal(saved)
    (saved / "model.safetensors").write_bytes(original)
    change(saved, lambda held: held.update({"model.norm.weight": np.zeros(64, np.int32)}))
    assert "weight model.norm.weight is I32, expected one of F32, F16, BF16" in refusal(saved)


def test_old_buffers_and_the_bare_decoder_are_understood(saved):
    def edit(held):
        for key in list(held):
            held[key.removeprefix("model.")] = held.pop(key)
        held["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)

    change(saved, edit)
    assert_same(load_model(saved, dtype=jnp.float32)[1], tiny("qwen2"))


def test_a_tied_head_stored_again_must_be_the_table(saved):
    change(saved, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"]}))
    assert_same(load_model(saved, dtype=jnp.float32)[1], tiny("qwen2"))
    change(saved, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"] + 1}))
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(saved)


def test_damaged_files_are_named(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors: cannot be read as safetensors" in refusal(saved)
    (saved / "model.safetensors").write_bytes(b"\x80\x04pickle?")
    assert "model.safetensors: cannot be read as safetensors" in refusal(saved)
    (saved / "config.json").write_text("{")
    assert "config.json: not valid JSON" in refusal(saved)
    (saved / "config.json").write_text("[]")
    assert "config.json: holds a list, expected a JSON object" in refusal(saved)
    (saved / "config.json").unlink()
    assert "no config.json in this folder" in refusal(saved)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "gone.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(saved, name):
    (saved.parent / "elsewhere.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    held = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(held, name)}))
    assert f"lists '{name}', which is not in" in refusal(saved)


def leave_behind(folder: Path) -> None:
    """Puts beside a saved model what an older one and other libraries may have left there."""
    held = load_file(folder / "model.safetensors")
    stale = {key: value / 2 for key, value in held.items()}
    save_file(stale, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(held, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "consolidated.safetensors").write_bytes(b"of another library")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    (folder / "it.gguf").write_bytes(b"neither")


def test_where_two_files_could_be_meant_it_is_the_one_that_transformers_takes(saved):
    leave_behind(saved)
    assert_same(load_model(saved, dtype=jnp.float32)[1], tiny("qwen2"))
    (saved / "model.safetensors").unlink()
    half = variables(load_model(saved, dtype=jnp.float32)[1])
    for path, value in variables(tiny("qwen2")).items():
        np.testing.assert_array_equal(half[path], value / 2)


@pytest.mark.parametrize("names", [["a", "b"], ["consolidated"], ["model-00001-of-00002"], ["model.fp16"]])
def test_weights_under_other_names_are_refused_as_transformers_does(saved, names):
    for name in names:
        (saved / f"{name}.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (saved / "model.safetensors").unlink()
    assert f"holds {names[0]}.safetensors" in (said := refusal(saved))
    assert "expected model.safetensors, or model.safetensors.index.json" in said


def test_a_folder_of_something_else_says_what_may_be_meant(saved, tmp_path):
    (saved / "adapter_config.json").write_text("{}")
    assert f"holds an adapter (adapter_config.json), expected a base and adapter={saved}" in refusal(saved)
    run = tmp_path / "run"
    for step in (9, 100):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "config.json").write_text("{}")
    assert f"(did you mean '{run / 'checkpoint-100'}'?)" in refusal(run)
    for name in ("a.gguf", "b.gguf"):
        (run / name).touch()
    assert "or one of its .gguf files: a.gguf, b.gguf" in refusal(run)
    raw = json.loads((saved / "config.json").read_text())
    (saved / "adapter_config.json").unlink()
    (saved / "config.json").write_text(json.dumps(raw | {"transformers_weights": "other.safetensors"}))
    assert "transformers_weights is 'other.safetensors'" in refusal(saved)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_never_opened(saved, suffix):
    (saved / "model.safetensors").unlink()
    pickle = saved / f"pytorch_model{suffix}"
    pickle.write_bytes(b"\x80\x04K\x00.")
    assert f"pytorch_model{suffix}: a pickle that can run code, expected *.safetensors" in refusal(saved)
    assert "is a pickle that can run code, expected safetensors or GGUF" in refusal(pickle)
    pickle.unlink()
    assert "no weights in this folder, expected *.safetensors" in refusal(saved)


def test_what_is_no_model_is_refused_with_the_nearest_name(saved, tmp_path):
    assert "no such file or folder, expected a model" in refusal("./nothing/of/the/kind")
    assert "(did you mean 'model.safetensors'?)" in refusal(saved / "model.safetensor")
    assert "not a model, expected a folder with config.json" in refusal(saved / "config.json")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "it.gguf").touch()
    assert "packed/it.gguf'?)" in refusal(tmp_path / "packed")


class FakeHub:
    """The hub as its client sees it, with one model in the cache."""

    def __init__(self, monkeypatch, folder, reachable):
        self.folder, self.reachable, self.asked = folder, reachable, []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, name, *, timeout):
        if not self.reachable:
            raise ConnectionError("no route\nto host")
        if name != "owner/model":
            raise huggingface_hub.errors.RevisionNotFoundError("404")

    def snapshot_download(self, name, *, local_files_only=False, **patterns):
        self.asked.append(patterns)
        if name != "owner/model":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(self.folder)


def test_of_a_hub_model_only_data_is_fetched(saved, monkeypatch):
    hub = FakeHub(monkeypatch, saved, reachable=True)
    assert_same(load_model("owner/model", dtype=jnp.float32)[1], tiny("qwen2"))
    assert set(hub.asked[0]["allow_patterns"]) == {"*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"}
    find_model("owner/model", weights=False)
    assert "*.safetensors" not in hub.asked[1]["allow_patterns"]


def test_a_hub_out_of_reach_is_one_line_unless_the_model_is_cached(saved, monkeypatch):
    FakeHub(monkeypatch, saved, reachable=False)
    assert find_model("owner/model") == saved
    assert "owner/other: no such folder, and the hub has no such model or cannot be reached (no route to host)" in (
        refusal("owner/other")
    )


def test_how_a_base_writes_by_default_is_kept_and_its_tokens_are_those_of_what_is_written(tmp_path):
    config, model = random_config("llama"), tiny("llama")
    save_model(tmp_path / "base", config, model, dtype=jnp.float32)
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    given = sampling | {"eos_token_id": [3, 4], "transformers_version": "4.51.0", "_from_model_config": True}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(given))
    assert sampling_defaults(tmp_path / "base") == sampling
    (tmp_path / "made").mkdir()
    values = weights_by_path(model, jnp.float32)
    write_weights(tmp_path / "made", config, values, dtype=jnp.float32, sampling=sampling)
    written = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert written == sampling | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
