"""Whatever a config.json holds, reading it ends in a model that can be built or in one line."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxlm.families.registry import FAMILIES, by_model_type, random_config
from jaxlm.files.hf_config import from_hf, to_hf
from jaxrun.process.errors import UserError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([10**9, 2**31, 10**30, 10**400, -(10**400)])
    | st.floats()
    | st.sampled_from(["", "silu", "gelu", "linear", "llama3", "full_attention", "qwen2", "\ud800", "x" * 5000])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
WHOLE = {family: to_hf(random_config(family)) for family in FAMILIES}
KEYS = sorted(
    {key for raw in WHOLE.values() for key in raw}
    | {"rope_parameters", "max_window_layers", "use_sliding_window", "sliding_window_pattern", "layer_types", "ticket"}
)


@given(st.sampled_from(list(FAMILIES)), st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3))
@example("llama", {"hidden_act": ["silu"]})
@example("llama", {"rms_norm_eps": math.inf})
@example("llama", {"num_hidden_layers": 10**9})
@example("gemma3", {"rope_parameters": {"full_attention": 5}})
@example("qwen2", {"use_sliding_window": True, "max_window_layers": "28", "sliding_window": 4})
def test_a_config_is_read_or_refused_in_one_line(family, changes):
    try:
        config = from_hf(WHOLE[family] | changes)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 1000
        line.encode("utf-8", "surrogatepass")
        return
    assert 1 <= config.num_layers <= 4096 and math.isfinite(config.norm_eps)
    assert all(0 <= token < config.vocab_size for token in config.eos_ids)
    json.dumps(to_hf(config))


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
