import json
import re
import shlex
from pathlib import Path

import pytest

from altojax.estimates.speed_model import OURS, WAYS

ROOT = Path(__file__).parent.parent.parent
DOCS = (ROOT / "docs" / "measured" / "capacity.md").read_text()
TABLES = (ROOT / "docs" / "figures" / "capacity-tables.md").read_text()
SENSITIVITY = re.findall(r"^\| `(--[^`]*)` \| (.*) \|$", DOCS, re.MULTILINE)


@pytest.fixture
def plan(script, called, capsys):
    """Runs the script; gives what it predicts for the words of a command line."""
    module = script("plan_capacity")

    def run(*words):
        assert called(module, *words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return run


def speeds(found, part="plans"):
    """Tokens a second by model, GPUs and way."""
    values = {(one["model"], one["gpus"], one["way"]): one.get("plan", one) for one in found[part]}
    return {key: value and value["tokens_per_s"] for key, value in values.items()}


@pytest.mark.parametrize(
    ("model", "billions"), [("llama-3.1-8b", 8.03), ("qwen2.5-32b", 32.76), ("llama-3.1-70b", 70.55)]
)
def test_a_model_has_the_parameters_that_its_card_says(plan, model, billions):
    [fit] = plan("--models", model, "--gpus", "1")["fits"]
    assert fit["base_bytes"] / 2e9 == pytest.approx(billions, rel=1e-3)


def test_a_packed_base_leaves_room_for_more_slots(plan):
    found = plan("--models", "llama-3.1-8b", "llama-3.1-70b", "--gpus", "1")
    plain = {one["model"]: one for one in found["fits"]}
    for one in found["packed"]:
        whole = plain[one["model"]]
        bits = 16 * one["base_bytes"] / whole["base_bytes"]
        assert {"nf4_double": 4.1, "nf4": 4.5, "int8": 8}[one["form"]] < bits < 10, "embedding and head stay in 16 bits"
        assert one["base_on_gpu_bytes"] == one["base_bytes"] + one["dense_bytes"]
        assert one["slots_on_gpu"]["full"] > whole["slots_on_gpu"]["full"] or (
            (one["model"], one["form"]) == ("llama-3.1-70b", "int8")  # which 80 GB hold, and nothing beside it
        )


def test_predictions_agree_with_the_steps_that_were_measured(plan):
    for check in plan("--gpus", "1")["checks"]:
        for key, margin in (("tokens_per_s", 0.15), ("step_gib", 0.05)):
            assert check["predicted"][key] == pytest.approx(check["measured"][key], rel=margin)


def test_two_gpus_are_predicted_within_five_percent_of_what_was_measured_and_not_with_the_links_that_are_sold(plan):
    def errors(*words):
        pairs = plan("--models", "llama-3.1-8b", "--gpus", "1", *words)["pairs"]
        return [abs(one["predicted"]["times"] / one["measured"]["times"] - 1) for one in pairs]

    assert max(errors()) < 0.05 < max(errors("--nvlink", "450"))
    assert max(errors("--hidden", "1")) > 0.05


def test_the_checks_do_not_depend_on_the_memory_and_links_that_were_asked_about(plan):
    asked, usual = plan("--gpus", "1", "--memory", "8GB", "--link", "ib"), plan("--gpus", "1")
    assert (asked["checks"], asked["pairs"]) == (usual["checks"], usual["pairs"])


def fastest(found, gpus=8):
    """The fastest way by model."""
    models = dict.fromkeys(key[0] for key in found)
    return {model: max(WAYS, key=lambda way: found[model, gpus, way] or 0) for model in models}


def test_with_many_adapters_adapter_parallelism_is_fastest_of_all_gpus_as_one_group_if_gathers_hide(plan):
    hidden = plan("--gpus", "8", "--nvlink", "450", "--hidden", "1")
    assert set(fastest(speeds(hidden)).values()) == {OURS}


def test_gathers_as_slow_as_measured_leave_it_fastest_where_the_base_is_small_for_its_tokens(plan):
    found = fastest(speeds(plan("--gpus", "8")))
    assert [model for model, way in found.items() if way == OURS] == ["llama-3.1-8b"]


def test_with_one_adapter_it_is_not(plan):
    found = speeds(plan("--gpus", "8", "--trials", "1"))
    for model in dict.fromkeys(key[0] for key in found):
        assert all(found[model, 8, OURS] < found[model, 8, way] for way in WAYS if way != OURS)


def test_few_tokens_over_a_slow_link_are_better_sent_than_the_base(plan):
    few = ("--models", "llama-3.1-70b", "--gpus", "2", "--memory", "141GB", "--link", "ib", "--trials", "2")
    short = speeds(plan(*few, "--rows", "1", "--length", "128"))
    assert short["llama-3.1-70b", 2, "tensor, many adapters"] > 10 * short["llama-3.1-70b", 2, OURS]


def test_a_base_that_fits_a_gpu_is_not_worth_gathering(plan):
    found = plan("--models", "llama-3.1-8b", "--gpus", "8")
    assert speeds(found, "groups")["llama-3.1-8b", 8, OURS] >= speeds(found)["llama-3.1-8b", 8, OURS]


def test_what_fits_nowhere_is_said_to(script, called, capsys):
    assert called(script("plan_capacity"), "--models", "llama-3.1-70b", "--gpus", "1") == 0
    assert "| llama-3.1-70b | 1 | does not fit |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--models", "lama-3.1-8b"],
            "given 'lama-3.1-8b', expected one of llama-3.1-70b, .*did you mean 'llama-3.1-8b'",
        ),
        (["--gpu", "8"], "unknown option '--gpu' .did you mean '--gpus'"),
        (["--gpus", "0"], "--gpus: given '0', expected a whole number of 1 or more"),
        (["--mfu", "50"], "--mfu: given '50', expected a number from 0.01 to 1"),
        (["--half-tokens", "nan"], "--half-tokens: given 'nan', expected a number of 0 or more"),
        (["--memory", "eighty"], "--memory: given 'eighty', expected bytes such as 40GiB"),
        (["--target-modules", "q_prj"], "no module of this model is named 'q_prj' .did you mean 'q_proj'"),
        (["--link", "nvlnk"], "invalid choice: 'nvlnk'"),
        (["--plot", "picture.jpg"], "--plot: given 'picture.jpg', expected a name that ends in .svg or .png"),
    ],
)
def test_a_wrong_option_is_one_line(script, called, capsys, words, told):
    assert called(script("plan_capacity"), *words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert re.search(told, shown.err), shown.err


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<svg"), ("a.png", b"\x89PNG")])
def test_a_picture_is_written_as_its_name_says(plan, tmp_path, name, begins):
    plan("--gpus", "1", "8", "--plot", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_that_cannot_be_written_is_one_line(script, called, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert called(script("plan_capacity"), "--gpus", "1", "--plot", str(tmp_path / "file" / "a.svg")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_docs_hold_what_the_script_prints(script, called, capsys):
    assert called(script("plan_capacity")) == 0
    assert capsys.readouterr().out.strip() in TABLES


def test_the_docs_tell_what_other_settings_change(plan):
    assert len(SENSITIVITY) >= 8
    ways = (OURS, "FSDP, one adapter", "tensor, many adapters", "pipeline, many adapters")
    for words, numbers in SENSITIVITY:
        found = plan(*shlex.split(words))
        [together] = [value for key, value in speeds(found).items() if key[2] == OURS]
        split = {key[2]: value for key, value in speeds(found, "groups").items()}
        expected = [together, *(split[way] for way in ways)]
        assert [cell.replace("*", "").strip() for cell in numbers.split("|")] == [f"{value:,.0f}" for value in expected]


def test_the_command_of_the_docs_for_a_cluster_of_ones_own_runs(plan):
    [words] = re.findall(r"^\.venv/bin/python scripts/plan/plan_capacity\.py (.*)$", DOCS, re.MULTILINE)
    assert all(one["plan"] is not None for one in plan(*shlex.split(words))["plans"] if one["way"] == OURS)
