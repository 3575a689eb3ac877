"""target_modules means here what it means in PEFT."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from altojax.adapters.target_modules import match_targets, module_paths, selected, target_fields
from jaxlm.families.names import projections
from jaxlm.families.registry import FAMILIES, random_config
from jaxrun.process.errors import UserError

LLAMA = random_config("llama")
GPT2 = random_config("gpt2")
PHI3 = random_config("phi3")
EVERY = tuple(range(LLAMA.num_layers))


def test_all_linear_is_every_projection_of_every_layer(capsys):
    for family in FAMILIES:
        config = random_config(family)
        assert match_targets("all-linear", config) == {key: one.layers for key, one in projections(config).items()}
    assert capsys.readouterr().err.count("experts are adapted by target_parameters, their router never") == 1


def test_experts_and_their_router_carry_no_adapters():
    qwen, mixtral = random_config("qwen3_moe"), random_config("mixtral")
    assert set(match_targets("all-linear", qwen)) == {f"self_attn.{one}_proj" for one in "qkvo"}
    for config, entry in ((qwen, ["q_proj", "up_proj"]), (qwen, ".*_proj"), (mixtral, ["w2"]), (mixtral, ["gate"])):
        with pytest.raises(
            UserError, match="which is no module to adapt; expected projections of attention, q_proj, k_proj"
        ):
            match_targets(entry, config)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (r".*layers\.1\..*", "model.layers.1.mlp.experts.0.gate_proj"),
        (r".*(q_proj|experts\.[35]\.up_proj)", "model.layers.0.mlp.experts.3.up_proj"),
        (["q_proj", "layers.2.mlp.gate"], "model.layers.2.mlp.gate"),
    ],
)
def test_an_expert_of_any_layer_is_refused_by_its_name(entry, named):
    with pytest.raises(UserError, match=f"names {named}, which is no module"):
        match_targets(entry, random_config("qwen3_moe"))


def test_a_list_matches_the_end_of_module_paths():
    assert match_targets(["q_proj", "mlp.up_proj"], LLAMA) == {"self_attn.q_proj": EVERY, "mlp.up_proj": EVERY}


def test_a_list_entry_may_name_one_layer():
    found = match_targets(["layers.1.self_attn.v_proj", "model.layers.2.self_attn.v_proj"], LLAMA)
    assert found == {"self_attn.v_proj": (1, 2)}


def test_a_list_entry_matches_whole_names_only():
    with pytest.raises(UserError, match="_proj"):
        match_targets(["proj"], LLAMA)


def test_one_gpt2_name_can_mean_two_projections():
    assert set(match_targets(["c_proj"], GPT2)) == {"self_attn.o_proj", "mlp.down_proj"}
    assert set(match_targets(["attn.c_proj"], GPT2)) == {"self_attn.o_proj"}


def test_all_parts_of_a_fused_projection_are_it_and_some_of_them_are_refused_by_name(capsys):
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert match_targets(every, PHI3) == match_targets("all-linear", PHI3)
    assert "note: target_modules: gate_proj, up_proj are one projection here, gate_up_proj" in capsys.readouterr().err
    named = ["layers.1.mlp.up_proj", "layers.1.mlp.gate_proj", "qkv_proj"]
    assert match_targets(named, PHI3) == {"self_attn.c_attn": EVERY, "mlp.gate_up_proj": (1,)}
    for some, expected in ((["q_proj", "v_proj"], "qkv_proj"), (["mlp.up_proj"], "mlp.gate_up_proj")):
        with pytest.raises(UserError, match=f"'{some[0]}' is a part of .* expected {expected}, or all of"):
            match_targets(some, PHI3)


def test_a_string_is_a_regular_expression_over_the_whole_path():
    found = match_targets(r".*layers\.[02]\..*(q|v)_proj", LLAMA)
    assert found == {"self_attn.q_proj": (0, 2), "self_attn.v_proj": (0, 2)}


def test_a_bare_name_as_a_string_is_answered_with_the_list_to_write():
    with pytest.raises(UserError, match=r"write a list: \[q_proj\]"):
        match_targets("q_proj", LLAMA)


@pytest.mark.parametrize(
    ("given_targets", "said"),
    [
        (["q_porj"], "did you mean 'q_proj'"),
        (["q_proj", "gate"], "'gate'"),
        (["lm_head"], "cannot carry an adapter"),
        ("(q_proj", "not a regular expression"),
        ("all_linear", "did you mean 'all-linear'"),
        ([], "empty list"),
    ],
)
def test_what_matches_nothing_is_refused_in_one_line(given_targets, said):
    with pytest.raises(UserError, match="target_modules") as refused:
        match_targets(given_targets, LLAMA)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@given(st.data())
def test_the_exported_fields_select_exactly_the_adapted_modules(data):
    config = random_config(data.draw(st.sampled_from(["llama", "gpt2", "gemma3", "gemma4"])))
    known = projections(config)
    keys = data.draw(st.lists(st.sampled_from(list(known)), min_size=1, unique=True))
    some_layers = st.lists(st.integers(0, config.num_layers - 1), min_size=1, unique=True).map(sorted).map(tuple)
    shared = data.draw(some_layers)
    chosen = dict.fromkeys(keys, shared) if data.draw(st.booleans()) else {k: data.draw(some_layers) for k in keys}
    held = {key: tuple(layer for layer in layers if layer in known[key].layers) for key, layers in chosen.items()}
    modules = {key: layers for key, layers in held.items() if layers}
    assume(modules)
    fields = target_fields(modules, config)
    paths = module_paths(config)
    found = selected(paths, fields["target_modules"], fields["layers_to_transform"], fields["layers_pattern"])
    assert set(found) == {path for path, (key, layer) in paths.items() if layer in modules.get(key, ())}
