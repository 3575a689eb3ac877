"""GGUF files give back the model they were made from, whatever llama.cpp did to it."""

import math
from dataclasses import replace

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from families import lanes
from gguf import GGMLQuantizationType as Kind
from gguf_files import ARCHITECTURES, rope_factors, write_gguf
from safetensors.numpy import load_file, save_file
from tiny_models import tiny, variables

from jaxlm.families.names import weights
from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.families.rope import RopeConfig
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model, read_model_config
from jaxrun.process.errors import UserError


def config_of(family):
    """The tiny model, without the one setting of Gemma's that GGUF has no place for."""
    config = random_config(family)
    return replace(config, attention_scale=config.head_dim**-0.5) if family.startswith("gemma") else config


def packed(tmp_path, family, kind=Kind.F32, **options):
    config = options.pop("config", config_of(family))
    save_model(tmp_path / "m", config, tiny(family), dtype=jnp.float32)
    if config.rope.scaling == "llama3":
        options = {"extra": {"rope_freqs.weight": rope_factors(config)}, **options}
    write_gguf(tmp_path / "m.gguf", tmp_path / "m", config, kind, **options)
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("family", lanes(one for one, kind in FAMILIES.items() if kind.gguf or one in ARCHITECTURES))
def test_the_model_and_its_config_come_back(family, tmp_path):
    config = config_of(family)
    if family == "llama":
        config = replace(config, rope=RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=8192))
    read, model = load_model(packed(tmp_path, family, config=config), dtype=jnp.float32)
    assert read == config
    for path, value in variables(tiny(family)).items():
        # Gemma's 1 + w, stored in float32, costs a bit of w.
        np.testing.assert_allclose(
            variables(model)[path], value, rtol=0, atol=2e-7 if family.startswith("gemma") else 0
        )


def test_yarn_is_read_from_the_metadata(tmp_path):
    rope = RopeConfig(1e6, "yarn", 4.0, original_max_position=128, attention_factor=0.1 * math.log(4.0) + 1.0)
    config = replace(config_of("qwen3"), rope=rope)
    assert read_model_config(packed(tmp_path, "qwen3", config=config)) == config


# Of a block's largest number. The kinds without an offset give one end of their range a whole step less than the other.
LARGEST_ERROR = {
    Kind.F16: 2**-11,
    Kind.BF16: 2**-8,
    Kind.Q8_0: 1 / 127,
    Kind.Q4_0: 1.01 / 8,
    Kind.Q4_1: 1.01 / 15,
    Kind.Q5_0: 1.01 / 16,
    Kind.Q5_1: 1.01 / 31,
}


@pytest.mark.parametrize("kind", LARGEST_ERROR, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_every_kind_of_number_is_read_row_by_row(family, kind, tmp_path):
    model = load_model(packed(tmp_path, family, kind), dtype=jnp.float32)[1]
    original, read = variables(tiny(family)), variables(model)
    bound = LARGEST_ERROR[kind]
    for weight in weights(random_config(family)):
        value = original[weight.path]
        if weight.path.endswith((".kernel", ".embedding")):
            rows = value.swapaxes(-1, -2) if weight.path.endswith("kernel") else value
            want = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(rows), kind), kind)
            want = want.swapaxes(-1, -2) if weight.path.endswith("kernel") else want
            assert np.abs(want - value).max() <= bound * np.abs(value).max()
            np.testing.assert_array_equal(read[weight.path], want)
        else:
            np.testing.assert_array_equal(read[weight.path], value)


def scale_and_min(scales, index):
    """The 6-bit scale and minimum of one of eight groups of 32 (ggml's get_scale_min_k4)."""
    if index < 4:
        return scales[index] & 63, scales[index + 4] & 63
    low, high = scales[index + 4] & 15, scales[index + 4] >> 4
    return low | (scales[index - 4] >> 6) << 4, high | (scales[index] >> 6) << 4


def half(block, start):
    return float(np.frombuffer(bytes(block[start : start + 2]), np.float16)[0])


def q4_k(block):
    d, least, scales, quants = half(block, 0), half(block, 2), block[4:16], block[16:]
    out = []
    for group in range(8):
        scale, minimum = scale_and_min(scales, group)
        shift = 4 * (group % 2)
        out += [d * scale * (q >> shift & 15) - least * minimum for q in quants[32 * (group // 2) :][:32]]
    return out


def q5_k(block):
    d, least, scales, high, quants = half(block, 0), half(block, 2), block[4:16], block[16:48], block[48:]
    out = []
    for group in range(8):
        scale, minimum = scale_and_min(scales, group)
        for index in range(32):
            low = quants[32 * (group // 2) + index] >> 4 * (group % 2) & 15
            out.append(d * scale * (low | (high[index] >> group & 1) << 4) - least * minimum)
    return out


def q6_k(block):
    low, high, d = block[:128], block[128:192], half(block, 208)
    scales = [int(np.int8(np.uint8(scale))) for scale in block[192:208]]
    out = []
    for index in range(256):
        part, place = divmod(index, 128)
        quarter, column = divmod(place, 32)
        four = low[64 * part + 32 * (quarter % 2) + column] >> 4 * (quarter // 2) & 15
        two = high[32 * part + column] >> 2 * quarter & 3
        out.append(d * scales[index // 16] * ((four | two << 4) - 32))
    return out


@pytest.mark.parametrize(
    ("kind", "size", "halves", "decode"),
    [(Kind.Q4_K, 144, (0, 2), q4_k), (Kind.Q5_K, 176, (0, 2), q5_k), (Kind.Q6_K, 210, (208,), q6_k)],
)
def test_k_quants_are_read_as_ggml_defines_them(kind, size, halves, decode, tmp_path):
    """One block of 256 a row, so of GPT-2 the projection that reads 256 features."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (64, size)).astype(np.uint8)
    for start in halves:
        rows[:, start : start + 2] = random.uniform(0.01, 0.1, (64, 1)).astype(np.float16).view(np.uint8)
    path = packed(tmp_path, "gpt2", raw={"blk.1.ffn_down.weight": (kind, rows)})
    read = variables(load_model(path, dtype=jnp.float32)[1])["layers.mlp.down_proj.kernel"]
    want = np.asarray([decode([int(byte) for byte in row]) for row in rows], np.float64)
    np.testing.assert_allclose(read[1], want.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(read[0], variables(tiny("gpt2"))["layers.mlp.down_proj.kernel"][0])


def test_a_head_that_repeats_the_table_is_tied_and_another_is_not(tmp_path):
    table = variables(tiny("qwen2"))["embed_tokens.embedding"]
    same = packed(tmp_path, "qwen2", extra={"output.weight": table})
    assert load_model(same, dtype=jnp.float32)[0].tie_embeddings
    config, model = load_model(packed(tmp_path, "qwen2", extra={"output.weight": table + 1}), dtype=jnp.float32)
    assert not config.tie_embeddings
    np.testing.assert_array_equal(model.head_kernel(), table + 1)


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_model(path, dtype=jnp.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_architectures_and_experts_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2moe")
    finish(writer)
    assert "architecture is 'qwen2moe', expected one of llama, qwen2" in refusal(tmp_path / "x.gguf")
    finish(gguf.GGUFWriter(tmp_path / "g.gguf", "gpt-oss"))
    assert "architecture is 'gpt-oss', expected one of llama, qwen2" in (said := refusal(tmp_path / "g.gguf"))
    assert "it is read from its Hugging Face folder alone" in said
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "qwen2")
    writer.add_expert_count(8)
    finish(writer)
    assert "a mixture of 8 experts, expected a dense model" in refusal(tmp_path / "y.gguf")
    finish(gguf.GGUFWriter(tmp_path / "z.gguf", "llama"))
    assert "z.gguf: hidden_size is None, expected a whole number above 0" in refusal(tmp_path / "z.gguf")


def test_experts_in_another_form_are_refused_as_that(tmp_path):
    """llama.cpp once wrote each expert's matrices by themselves; transformers can keep all of a layer's in one."""
    path = packed(tmp_path, "mixtral", extra={"blk.0.ffn_down.0.weight": np.zeros((2, 2), np.float32)})
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_down_exps.weight", b"blk.0.ffn_down_rows.weight"))
    said = "holds experts as blk.0.ffn_down.0.weight, a form that is not read, expected blk.0.ffn_down_exps.weight"
    assert said in refusal(path)
    held = load_file(tmp_path / "m/model.safetensors")
    held = {key: value for key, value in held.items() if ".experts." not in key}
    held["model.layers.0.mlp.experts.gate_up_proj"] = np.zeros((4, 192, 64), np.float32)
    save_file(held, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    said = "holds experts as model.layers.0.mlp.experts.gate_up_proj, a form that is not read, expected model.layers.0."
    assert said in refusal(tmp_path / "m")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_unknown_rotary_scaling_is_refused(tmp_path):
    factors = np.linspace(1, 9, 8, dtype=np.float32)
    assert "rope_freqs.weight holds a rotary scaling" in refusal(
        packed(tmp_path, "llama", extra={"rope_freqs.weight": factors})
    )


def test_parts_of_one_model_are_read_from_the_first(tmp_path):
    packed(tmp_path, "qwen3", most=20)
    first, second = sorted(tmp_path.glob("m-*.gguf"))
    assert first.name == "m-00001-of-00002.gguf"
    for path, value in variables(load_model(first, dtype=jnp.float32)[1]).items():
        np.testing.assert_array_equal(value, variables(tiny("qwen3"))[path])
    assert "m-00002-of-00002.gguf: part 2 of 2, expected the first of them" in refusal(second)
    alone = first.rename(tmp_path / "alone.gguf")
    assert "alone.gguf: part 1 of 2, expected the first of them, NAME-00001-of-00002.gguf" in refusal(alone)
    alone.rename(first)
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert "m-00002-of-00002.gguf: is another model's, expected part 2 of the 2" in refusal(first)
    second.write_bytes(whole[:-500])
    assert "m-00002-of-00002.gguf: cannot be read as GGUF" in refusal(first)
    second.unlink()
    assert "m-00002-of-00002.gguf: no such file, expected part 2 of the 2 of m-00001-of-00002.gguf" in refusal(first)


def test_a_kind_of_numbers_that_is_not_known_is_no_damage_and_what_is_read_is_listed(tmp_path):
    path = packed(tmp_path, "qwen3")
    whole = path.read_bytes()
    name = b"blk.0.ffn_gate.weight"
    kind = whole.index(name) + len(name) + 4 + 2 * 8
    for number, said in ((99, "stored as kind 99, "), (int(Kind.I32), "I32, which cannot be dequantised; ")):
        path.write_bytes(whole[:kind] + number.to_bytes(4, "little") + whole[kind + 4 :])
        assert f"weight blk.0.ffn_gate.weight is {said}expected one of F32, F16, Q4_0" in refusal(path)


def test_a_missing_or_unknown_weight_is_named(tmp_path):
    path = packed(tmp_path, "qwen3", extra={"blk.0.ffn_gate_inp.weight": np.zeros((2, 2), np.float32)})
    assert "weight blk.0.ffn_gate_inp.weight is unexpected" in refusal(path)
    path = packed(tmp_path, "qwen3")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"blk.1.attn_q_norm.weight", b"blk.1.attn_x_norm.weight"))
    assert "weight blk.1.attn_q_norm.weight is missing" in refusal(path)


@pytest.mark.parametrize("keep", [0, 3, 60, 2000, -500])
def test_a_torn_file_is_named(tmp_path, keep):
    path = packed(tmp_path, "qwen3")
    path.write_bytes(path.read_bytes()[:keep])
    assert "m.gguf: cannot be read as GGUF" in refusal(path)
