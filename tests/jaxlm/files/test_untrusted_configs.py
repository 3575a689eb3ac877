"""What a config.json says of kinds, ends and padding that no model has; tests/fuzz feeds it with everything else."""

import pytest

from jaxlm.families.registry import FAMILIES, by_model_type, random_config
from jaxlm.files.hf_config import from_hf, to_hf
from jaxrun.process.errors import UserError

WHOLE = {family: to_hf(random_config(family)) for family in FAMILIES}


@pytest.mark.parametrize("model_type", [None, 7, ["llama"], {"a": 1}, "llama4", "ticket_"])
def test_a_model_type_that_is_none_is_named(model_type):
    with pytest.raises(UserError, match=r"model_type is|ticket is"):
        from_hf(WHOLE["llama"] | {"model_type": model_type})


@pytest.mark.parametrize(("key", "token"), [("eos_token_id", 256), ("eos_token_id", [2, -1]), ("bos_token_id", 300)])
def test_an_end_or_beginning_that_no_text_can_have_is_refused(key, token):
    with pytest.raises(UserError, match=f"{key} is .*256"):
        from_hf(WHOLE["llama"] | {key: token})


@pytest.mark.parametrize("token", [-1, 256, 10**30])
def test_padding_beyond_the_vocabulary_is_no_padding(token):
    assert from_hf(WHOLE["llama"] | {"pad_token_id": token}).pad_id is None


def test_every_family_reads_back():
    assert by_model_type().keys() >= {raw["model_type"] for raw in WHOLE.values()}
    for family, raw in WHOLE.items():
        assert from_hf(raw) == random_config(family)


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        ("mixtral", {"num_local_experts": 10**6}, r"num_local_experts is 1000000, expected at most 43,690"),
        ("qwen3_moe", {"num_local_experts": 3}, "num_experts is 6, expected 3, as num_local_experts says"),
        ("qwen3_moe", {"num_experts_per_tok": None}, "at most the 6 experts, and without a number it is 8"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected at most the 6 experts$"),
    ],
)
def test_numbers_of_experts_that_no_model_has_are_refused_before_weights_are_looked_for(family, changed, said):
    with pytest.raises(UserError, match=said):
        from_hf(WHOLE[family] | changed)


def test_experts_are_counted_by_either_name():
    raw = dict(WHOLE["qwen3_moe"])
    assert from_hf({**raw, "num_local_experts": raw["num_experts"]}).experts == 6
    assert from_hf({**raw, "num_local_experts": raw.pop("num_experts")}).experts == 6
