"""What an adapter to start from decides of a task's trials, and what of it is refused, each in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from adapters import random_adapter

from altojax.adapters.peft_files import export_adapter
from altojax.config.tune_config import TuneConfig
from altojax.run.prepare import PreparedRun, prepare
from altojax.run.run_identity import differences, identity_of
from jaxlm.families.registry import random_config
from jaxlm.files.weights import read_model_config
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError

TINY = Path(__file__).parents[3] / "configs" / "tiny"
LAYERS = r"model\.layers\.1\..*(q|down)_proj"


@pytest.fixture
def adapter(tmp_path):
    """Writes adapters of the tiny base, or of another."""

    def write(name="start", targets=LAYERS, config=None, base="tiny", base_quantization="", **more) -> str:
        config = config or read_model_config(str(TINY), weights=False)
        spec, arrays = random_adapter(config, targets, **more)
        export_adapter(
            tmp_path / name,
            replace(spec, base_model_name=base, base_quantization=base_quantization),
            arrays,
            config,
            None,
            {},
        )
        return str(tmp_path / name)

    return write


@pytest.fixture
def config(tmp_path):
    """Makes configs of tasks on a few rows."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*tasks: dict, **run) -> TuneConfig:
        data = {"train": str(tmp_path / "sums.jsonl"), "validation_samples": 6, "max_length": 32}
        base = {"model_name_or_path": str(TINY), "random_init": True}
        tasks = [{"name": f"task-{i}", "data": data} | one for i, one in enumerate(tasks)]
        return check_config(TuneConfig, {"output_dir": "x", "model": base, "tasks": tasks, **run}, "x")

    return make


def of_task(prepared: PreparedRun, task: str) -> list:
    return [one for base in prepared.bases for one in base.trials if one.task == task]


@pytest.mark.parametrize(
    ("targets", "shape"),
    [(LAYERS, {"rank": 3, "alpha": 5.0, "use_rslora": True}), ("all-linear", {}), (["q_proj", "mlp.up_proj"], {})],
)
def test_the_shape_is_the_adapters_and_all_else_the_search_spaces(adapter, config, targets, shape):
    """Also where tasks share a space that says another shape, for those that start from none."""
    folder = adapter(targets=targets, **shape)
    space = {"lora_rank": [8, 16], "target_modules": ["v_proj"], "learning_rate": [1e-3, 1e-2], "lora_dropout": 0.1}
    prepared = prepare(config({"init_adapter": folder}, {}, search=space))
    started, plain = (of_task(prepared, f"task-{i}") for i in range(2))
    assert len(started) == 2 and len(plain) == 4
    spec, _ = random_adapter(prepared.bases[0].config, targets, **shape)
    for one in started:
        assert (one.config.lora_rank, one.config.scale, one.modules) == (spec.rank, spec.scale, spec.modules)
        assert one.config.lora_dropout == 0.1 and one.hyper()["scale"] == spec.scale and one.decided
    notes = prepared.data["task-0"].notes
    assert any(note.startswith(f"starts from {folder}: rank {spec.rank}, alpha {spec.alpha:g}") for note in notes)
    assert not any("trained on" in note for note in notes)


def test_an_adapter_of_a_base_of_another_name_is_named(adapter, config):
    notes = prepare(config({"init_adapter": adapter(base="org/Other-1B")})).data["task-0"].notes
    assert any("says that it was trained on org/Other-1B, not " in note for note in notes)


def test_an_adapter_of_another_form_of_the_base_is_named(adapter, config):
    folder, undone = adapter(base_quantization="nf4"), adapter("undone", base_quantization="none")
    said = "says that it was trained on a base in nf4; this one "
    for quantize, known in ((None, f"{said}is not quantised"), ("int8", f"{said}is in int8"), ("nf4", None)):
        model = {"model_name_or_path": str(TINY), "random_init": True, "quantize": quantize}
        notes = prepare(config({"init_adapter": folder}, model=model)).data["task-0"].notes
        assert [note.endswith(f"{folder} {known}") for note in notes if said in note] == ([True] if known else [])
        notes = prepare(config({"init_adapter": undone}, model=model)).data["task-0"].notes
        assert any("trained on a base that was dequantised; this one is in" in note for note in notes) == bool(quantize)


def test_an_adapter_that_cannot_be_continued_is_refused(adapter, config, tmp_path):
    def refused(folder: str, search: dict | None = None) -> str:
        with pytest.raises(UserError) as caught:
            prepare(config({"init_adapter": folder, "search": search or {}}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = adapter(rank=4, alpha=8.0)
    assert "search.lora_rank: 8, but the adapter of init_adapter has 4, expected that" in refused(
        folder, {"lora_rank": [4, 8]}
    )
    assert "search.lora_alpha: 4.0, but" in refused(folder, {"lora_alpha": 4.0})
    assert "search.use_rslora: True, but" in refused(folder, {"use_rslora": True})
    assert "has q_proj, down_proj, expected that" in refused(folder, {"target_modules": ["q_proj"]})
    assert "search.lora_rank: 2, but" in refused(folder, {"configurations": [{"lora_rank": 2}]})
    assert "task 'task-0': init_adapter: no folder" in (said := refused(str(tmp_path / "strat")))
    assert "did you mean 'start'?" in said
    other = adapter("other", config=replace(random_config("llama"), num_layers=2, hidden_size=32, intermediate_size=64))
    assert "for this model and r=4" in refused(other)
    fields = json.loads((Path(folder) / "adapter_config.json").read_text())
    (Path(folder) / "adapter_config.json").write_text(json.dumps(fields | {"use_dora": True}))
    assert "use_dora is true; only plain LoRA can be read" in refused(folder)
    (Path(folder) / "adapter_config.json").write_text(json.dumps(fields | {"lora_alpha": 0}))
    assert "lora_alpha is 0, expected a number above 0" in refused(folder)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (
            [{"init_adapter": {"best_of": "taks-1"}}, {}],
            "init_adapter: no task 'taks-1' (did you mean 'task-1'?), expected another of the run",
        ),
        ([{"init_adapter": {"best_of": "task-0"}}], "task-0 waits for task-0, expected a task that does not wait"),
        (
            [{"init_adapter": {"best_of": f"task-{i}"}} for i in (1, 2, 0)],
            "task-0 waits for task-1 waits for task-2 waits for task-0",
        ),
        (
            [{}, {"init_adapter": {"best_of": "task-0"}, "model": {"model_name_or_path": "other"}}],
            "'task-0' has another model section, expected that of 'task-1'",
        ),
        (
            [{}, {"init_adapter": {"best_of": "task-0"}, "search": {"lora_rank": 16}}],
            "task 'task-1': search.lora_rank: given, but the best of 'task-0' decides it, expected none",
        ),
        (
            [{}, {"init_adapter": {"best_of": "task-0"}, "search": {"configurations": [{"lora_alpha": 16.0}]}}],
            "search.lora_alpha: given, but",
        ),
        ([{"lora_model_dir": "x"}], "(did you mean 'init_adapter'?)"),
    ],
)
def test_tasks_that_cannot_wait_for_others_are_refused(config, tasks, said):
    with pytest.raises(UserError) as caught:
        prepare(config(*tasks))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_comes_after_that_for_which_it_waits_and_is_planned_as_its_largest(config):
    tasks = [
        {"init_adapter": {"best_of": "task-1"}},
        {"init_adapter": {"best_of": "task-2"}},
        {"search": {"seed": [1, 2]}},
    ]
    prepared = prepare(config(*tasks, search={"lora_rank": [2, 8], "target_modules": ["q_proj", "v_proj"]}))
    [base] = prepared.bases
    assert base.tasks == ("task-2", "task-1", "task-0")
    for task in ("task-0", "task-1"):
        [one] = of_task(prepared, task)
        assert not one.decided and one.config.lora_rank == 8
        assert one.modules == of_task(prepared, "task-2")[0].modules
        assert "lora_rank" not in one.settings and "learning_rate" in one.settings


def test_seeds_that_nothing_is_drawn_from_are_one_trial(adapter, config):
    start = {"init_adapter": adapter()}
    drops = prepare(config(start, search={"seed": [1, 2], "lora_dropout": 0.1}))
    draws_nothing = prepare(config(start, search={"seed": [1, 2]}))
    assert [len(one.bases[0].trials) for one in (drops, draws_nothing)] == [2, 1]


def test_a_run_resumes_from_the_same_adapter_alone_and_with_the_same_trials_to_win(adapter, config):
    def identity(start, first=(1e-3,), second=(1e-3,)):
        given = config({"search": {"learning_rate": [*first]}}, {"search": {"learning_rate": [*second]}, **start})
        return identity_of(given, prepare(given))

    folder, best = {"init_adapter": adapter()}, {"init_adapter": {"best_of": "task-0"}}
    assert differences(identity(folder), identity({"init_adapter": adapter("moved")})) == []
    other = {"init_adapter": adapter("other", seed=1)}
    assert differences(identity(folder), identity(other)) == ["tasks.task-1.init_adapter"]
    assert differences(identity({}), identity(best)) == ["tasks.task-1.init_adapter"]
    assert differences(identity(best), identity(best, second=(1e-3, 1e-2))) == []
    [said] = differences(identity(best), identity(best, first=(1e-3, 1e-2)))
    assert said == "tasks.task-0.search (more trials, where task-1 starts from its best)"
    assert differences(identity(folder), identity(folder, first=(1e-3, 1e-2))) == []
