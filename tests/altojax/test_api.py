"""A sweep, its results and its models from Python: the same run that the command line makes, and exceptions."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas
import pytest
from runs import TINY, write_finished_run

import altojax
from altojax import cli
from jaxrun.config.strict_yaml import dump_yaml
from jaxrun.store import frames
from jaxrun.store.journal import Journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds rows, and the runs of all tests."""
    made = tmp_path_factory.mktemp("api")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(4)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def config_of(folder: Path) -> dict:
    return {
        "model": {"model_name_or_path": TINY, "random_init": True, "dtype": "float32"},
        "search": {"target_modules": ["q_proj"], "lora_rank": 2, "learning_rate": (3e-2, 3e-3), "batch_size": 3},
        "slots": 2,
        "eval_samples": 0.25,
        "early_exit": {"preset": "none"},
        "tasks": [
            {"name": "sums", "data": {"train": folder / "rows.jsonl", "validation_samples": 4, "max_length": 32}}
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def _no_report(few_shapes):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        yield


@pytest.fixture(scope="module")
def run(folder) -> altojax.Run:
    """A finished sweep, whose second trial a callback ended; made in a thread, where no signal can be caught."""
    made: list[altojax.Run] = []

    def ends(evaluation: altojax.Evaluation) -> str | None:
        return "seen enough" if evaluation.trial == "trial-1" and evaluation.fraction >= 0.5 else None

    def sweep() -> None:
        made.append(
            altojax.tune(
                config_of(folder),
                callbacks=[ends],
                metric=lambda one: {"gained": one.base_loss - one.val_loss},
                quiet=True,
                output_dir=folder / "run",
            )
        )

    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    return made[0]


def test_importing_altojax_imports_nothing_that_takes_long():
    said = "import sys, altojax; print(sorted({'jax', 'numpy', 'pydantic', 'pandas'} & set(sys.modules)), altojax.tune)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] <function tune")


def test_a_run_of_python_is_that_of_the_command_line(folder, run):
    path = folder / "run.yaml"
    config = config_of(folder) | {"model": {"model_name_or_path": str(TINY), "random_init": True, "dtype": "float32"}}
    config["search"]["learning_rate"] = [3e-2, 3e-3]
    config["tasks"][0]["data"]["train"] = str(folder / "rows.jsonl")
    path.write_text(dump_yaml(config))
    assert cli.main(["tune", str(path), f"output_dir={folder / 'run'}", "report_to=[]"]) == 0
    assert altojax.open_run(folder / "run").trials().equals(run.trials())
    with pytest.raises(altojax.UserError, match="differs in seed"):
        altojax.tune(config_of(folder), output_dir=folder / "run", seed=1, quiet=True)


def test_trials_are_a_table_with_what_became_of_each(run):
    table = run.trials("sums")
    assert isinstance(table, pandas.DataFrame)
    assert list(table["status"]) == ["completed", "stopped"] and list(table["detail"]) == ["", "seen enough"]
    assert list(table["learning_rate"]) == [3e-2, 3e-3] and list(table["rank"]) == [2, 2]
    assert table["best_val_loss"].min() == run.best().loss


def test_curves_are_a_table_of_every_evaluation_with_the_numbers_of_the_metric(run):
    table = run.curves()
    assert list(table.columns[-1:]) == ["gained"] and table[["train_loss", "val_loss", "gained"]].notna().all(axis=None)
    assert dict(table.groupby("trial").size()) == {"trial-0": 4, "trial-1": 2}
    assert list(table["gained"]) == list(run.best().base_loss - table["val_loss"])


def test_tables_are_lists_of_dicts_without_pandas(run, monkeypatch):
    monkeypatch.setattr(frames.importlib.util, "find_spec", lambda name: None)
    trials, curves = run.trials(), run.curves()
    assert [one["trial"] for one in trials] == ["trial-0", "trial-1"] and len(curves) == 6
    assert {"task", "trial", "step", "train_loss", "val_loss", "learning_rate"} < curves[0].keys()


def test_the_best_trial_has_a_folder_with_its_adapter(run):
    best = run.best()
    assert (best.task, best.trial, best.settings["learning_rate"]) == ("sums", "trial-0", 3e-2)
    assert best.loss < best.base_loss and (best.adapter / "adapter_model.safetensors").is_file()
    assert repr(run) == f"<Run {run.path}: finished, 2 trials of sums>"


def test_a_loaded_model_has_the_loss_that_the_run_measured(run):
    tuned, base = altojax.load(run), altojax.load(run.path, adapter=False)
    assert tuned.loss() == pytest.approx(run.best().loss, abs=1e-5)
    assert base.loss() == pytest.approx(run.best().base_loss, abs=1e-5)
    assert base.names == ("base",) and tuned.names == ("base", "sums/best")


def test_rows_of_python_are_those_of_a_file(folder, run):
    model = altojax.load(run, trial="trial-1")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert model.loss(rows) == model.loss(folder / "rows.jsonl") == model.loss(str(folder / "rows.jsonl"))
    with pytest.raises(altojax.UserError, match=r"^rows:2: "):
        model.loss([rows[0], {"prompt": "1+1="}])
    with pytest.warns(UserWarning, match="rows: 1 rows were cut to 32 tokens"):
        model.loss([{"prompt": "1+1=", "completion": "2" * 99}])


def test_a_loaded_model_answers_prompts_as_the_command_line_does(run, capsys):
    made = altojax.load(run).generate(["1+1=", "2+3="], max_new_tokens=4)
    assert len(made) == 2
    assert (
        altojax.load(run.best().adapter.parents[2] / "run", trial="best").generate("1+1=", max_new_tokens=4) == made[:1]
    )
    assert cli.main(["generate", str(run.path), "prompt=1+1=", "max_new_tokens=4"]) == 0
    assert capsys.readouterr().out == f"{made[0]}\n"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model.generate(["a", 3]), "prompts.1: given 3, expected text"),
        (lambda model: model.generate("a", max_new_tokens=0), "generate: max_new_tokens: given 0, expected at least 1"),
        (lambda model: model.generate("a", temperature="hot"), 'generate: temperature: given "hot", expected a number'),
        (lambda model: model.loss([]), "rows: no usable row among 0"),
        (lambda model: model.loss("gone.jsonl"), "gone.jsonl: no such file"),
        (lambda model: model.loss(batch_size=0), "loss: batch_size: given 0, expected a whole number of at least 1"),
    ],
)
def test_what_a_model_cannot_be_asked_is_one_line(run, call, said):
    with pytest.raises(altojax.UserError) as caught:
        call(altojax.load(run))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: altojax.open_run(run.path / "gone"), "no run here"),
        (lambda run: run.best("sms"), "has no task 'sms' (did you mean 'sums'?), expected one of sums"),
        (lambda run: run.curves("other"), "has no task 'other', expected one of sums"),
        (lambda run: altojax.load(run, trial="trial-9"), "task 'sums' has no trial 'trial-9'"),
        (lambda run: altojax.load(run, adapter=True), "adapter: given True, expected a folder"),
        (lambda run: altojax.load(run, dtype="int8"), "load: dtype: given \"int8\", expected one of 'auto', 'float32'"),
        (lambda run: altojax.load(run, trial=0), "load: trial: given 0, expected a string"),
        (lambda run: altojax.load(run, mesh={"tensr": 2}), "load: mesh.tensr: unknown key"),
        (lambda run: altojax.tune({"tasks": []}), "config: output_dir: missing"),
        (lambda run: altojax.tune({}, output_dir=3), "overrides: output_dir: given 3, expected a string"),
    ],
)
def test_a_wrong_call_raises_one_line_and_ends_no_interpreter(run, call, said):
    with pytest.raises(altojax.UserError) as caught:
        call(run)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_best_of_several_tasks_must_be_named(tmp_path):
    run = altojax.open_run(write_finished_run(tmp_path))
    with pytest.raises(altojax.UserError, match="no task given, expected one of first, second"):
        run.best()
    with pytest.raises(altojax.UserError, match="no trial of task 'first' has a finite validation loss"):
        run.best("first")


def test_ctrl_c_saves_everything_and_raises_keyboard_interrupt(folder, run):
    """In the main thread, as in a notebook's cell; what handled signals before handles them after."""
    before = signal.getsignal(signal.SIGINT)

    def stops(evaluation: altojax.Evaluation) -> None:
        if evaluation.trial == "trial-0" and evaluation.fraction == 0.5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="everything saved"):
        altojax.tune(config_of(folder), callbacks=[stops], output_dir=folder / "stopped", quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert altojax.open_run(folder / "stopped").state != run.state
    with Journal.read(folder / "stopped") as journal:
        assert journal.last_checkpoint() is not None
    resumed = altojax.tune(config_of(folder), output_dir=folder / "stopped", quiet=True)
    assert resumed.best().loss == run.best().loss
