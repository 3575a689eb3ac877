"""A training that is stopped or killed resumes to the same bits; a run's folder is a run's."""

import json
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from twist_runs import write_teacher, write_twist_config

import twistjax.training.trainer as trainer_module
from jaxlm.files.weights import load_model
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from twistjax.cli import main
from twistjax.comparison.pruning import Sparsity
from twistjax.config import TwistConfig
from twistjax.training.central_model import load_saved
from twistjax.training.prepare import prepare
from twistjax.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The central model and the losses of a run that nobody disturbs."""
    code, central, points = made(write_config(tmp_path_factory.mktemp("whole")))
    assert code == 0
    return central, points


def write_config(folder):
    """Writes a run of six rounds over a model of two layers."""
    return write_twist_config(
        folder,
        """
subnetworks: {workers: 2, kappa: 0.5, block: 16}
training: {local_steps: 2, batch_size: 2, train_samples: 48, learning_rate: 1.0e-3, optimizer_state: carry}
evaluation: {every: 2, tickets: 2}
checkpoint_rounds: 2
""",
    )


def made(path, *overrides):
    """Runs to the end; returns the exit code, the central model and the losses."""
    config = load_config(TwistConfig, path, overrides)
    code = Trainer(config, console=Console(quiet=True)).run()
    return code, *result(config)


def result(config):
    with Journal.read(config.output_dir) as journal:
        saved = load_saved(Path(config.output_dir), journal.last_checkpoint(), config, prepare(config))
        points = [(one.trial, one.split, one.step, one.loss) for one in journal.points()]
        used = config.subnetworks.workers_at_once or 2
        assert journal.events("run_start")[-1].payload["device"] == f"{used} × cpu", "those of its workers, of eight"
    return jax.device_get(saved.central), points


def assert_same(one, other):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_stopped_run_goes_on_to_the_same_bits(config, whole, monkeypatch):
    advance, count = trainer_module._Run.advance, []

    def stop(self):
        advance(self)
        count.append(self.round)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer_module._Run, "advance", stop)
    code, _, _ = made(config)
    assert code == 130 and count[-1] == 5
    code, again, same = made(config)
    assert code == 0 and count[-1] == 6
    assert_same(again, whole[0])
    assert same == whole[1]


def test_a_killed_run_goes_on_from_its_last_checkpoint(config, whole, monkeypatch):
    save = trainer_module.save_tree

    def fail(folder, tree):
        if folder.name == "central.4":
            raise RuntimeError("killed")
        save(folder, tree)

    monkeypatch.setattr(trainer_module, "save_tree", fail)
    with pytest.raises(RuntimeError, match="killed"):
        made(config)
    monkeypatch.setattr(trainer_module, "save_tree", save)
    code, again, same = made(config)
    assert code == 0 and same == whole[1]
    assert_same(again, whole[0])


def test_checkpoints_that_would_take_too_much_of_the_time_wait_for_a_stop_or_the_end(config, whole, monkeypatch):
    monkeypatch.setattr("jaxrun.store.save_pace.BYTES_PER_S", 1.0)
    save, advance, saved = trainer_module.save_tree, trainer_module._Run.advance, []

    def stop(self):
        advance(self)
        if self.round == 3 and not saved:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        trainer_module, "save_tree", lambda folder, tree: (saved.append(folder.name), save(folder, tree))
    )
    monkeypatch.setattr(trainer_module._Run, "advance", stop)
    assert made(config, "checkpoint_rounds=null")[0] == 130
    code, again, same = made(config, "checkpoint_rounds=null")
    assert code == 0 and saved == ["central.3", "central.6"]
    assert same == whole[1]
    assert_same(again, whole[0])


def test_a_finished_run_is_not_trained_again_and_keeps_one_checkpoint(config, monkeypatch):
    made(config)
    monkeypatch.setattr(trainer_module._Run, "advance", None)
    assert made(config)[0] == 0
    assert [path.name for path in (config.parent / "run" / "checkpoints").iterdir()] == ["central.6"]
    with pytest.raises(UserError, match=r"training\.local_steps"):
        made(config, "training.local_steps=3")


def test_what_decides_no_result_may_change_while_a_run_goes_on_and_what_does_is_named(config, whole, monkeypatch):
    advance, rounds = trainer_module._Run.advance, []

    def stop(self):
        advance(self)
        rounds.append(self.round)
        if len(rounds) in (1, 3):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer_module._Run, "advance", stop)
    assert made(config)[0] == 130
    code, _, _ = made(config, "checkpoint_rounds=5", "subnetworks.kappa=[0.5]", "data.bad_lines=error", "report_to=[]")
    assert code == 130
    code, again, same = made(config, "baselines.draws=3", "training.warmup_ratio=0.03")
    assert code == 0 and same == whole[1]
    assert_same(again, whole[0])
    assert made(config, "subnetworks.workers_at_once=1", "model.remat=full", "model.scan_layers=true")[0] == 0
    assert rounds == [1, 2, 3, 4, 5, 6]
    for override in (
        "seed=1",
        "data.max_length=16",
        "evaluation.tickets=3",
        "subnetworks.kappa=0.75",
        "model.dtype=bfloat16",
    ):
        with pytest.raises(UserError, match=f"differs in {override.partition('=')[0]}"):
            made(config, override)


def test_a_ladder_compiles_once_for_a_kappa_and_draws_the_same_again(config):
    ladder = ["subnetworks.kappa=[0.5,1.0]", "subnetworks.workers_at_once=1"]
    code, first, points = made(config, *ladder)
    assert code == 0 and {name for name, *_ in points} == {"full", "kappa 0.5", "kappa 1"}
    _, second, again = made(config, *ladder, f"output_dir={config.parent}/again")
    assert points == again
    assert_same(first, second)


def test_what_goes_beyond_twist_is_stopped_and_goes_on_to_the_same_bits_and_compiles_once(config, monkeypatch):
    teacher = write_teacher(config.parent / "teacher")
    flags = ["subnetworks.kappa=[0.5,1.0]", "subnetworks.workers_at_once=1", "subnetworks.order=importance"]
    flags += [f"training.teacher={teacher}", "training.teacher_share=0.5", "training.outer=nesterov"]
    advance, compiled = trainer_module._Run.advance, []

    def stop(self):
        advance(self)
        compiled.append(sorted(self.rounds.programs))
        if len(compiled) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer_module._Run, "advance", stop)
    code, first, points = made(config, *flags, f"output_dir={config.parent}/whole")
    assert code == 0
    assert made(config, *flags)[0] == 130
    monkeypatch.setattr("twistjax.training.teacher.load_model", None)
    code, again, same = made(config, *flags)
    assert code == 0 and same == points and len(compiled) == 12
    assert again.velocity is not None and max(np.abs(value).max() for value in again.velocity.values()) > 0
    assert_same(again, first)
    assert compiled == [["kappa 0.5", "kappa 1", "mean", "zeros"]] * 12
    with pytest.raises(UserError, match=r"differs in training\.outer"):
        made(config, *flags[:-1])
    evaluations = [(name, step) for name, split, step, _ in points if split == "validation"]
    assert len(evaluations) == len(set(evaluations)) == 3 * 4


def test_training_lowers_the_loss_of_tickets_and_of_the_full_model(config):
    _, _, points = made(config, "training.train_samples=320", "training.learning_rate=3.0e-3", "evaluation.every=10")
    for name in ("full", "kappa 0.5"):
        curve = [loss for trial, split, _, loss in points if (trial, split) == (name, "validation")]
        assert curve[-1] < curve[0] - 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["subnetworks.kappa=0.25"], "workers: given 2, .* expected at least 4 workers"),
        (["subnetworks.workers_at_once=3"], "workers_at_once: given 3, expected a divisor of the 2 workers"),
        (["subnetworks.kappa=[0.5,1.0]", "subnetworks.correction=full"], "full with several kappas"),
        (["subnetworks.block=7"], "block: given 7, expected a divisor"),
        (["subnetworks.protected_first=2"], r"protected: given 2 \+ 0 layers, expected fewer than the model's 2"),
        (["data.max_length=4096"], "data.max_length: given 4096, expected at most the model's 512"),
        (["subnetworks.kapa=0.5"], "kapa.*did you mean 'kappa'"),
        (["training.lr=1"], "learning_rate"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(config, overrides, message, capsys):
    assert main(["train", str(config), *overrides]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said)
    assert not (config.parent / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(config, capsys):
    assert main(["train", str(config), "training.learning_rate=1.0e+30", "training.max_grad_norm=0"]) == 2
    assert "not finite, expected a lower training.learning_rate" in capsys.readouterr().err


def test_tickets_export_measure_and_report_work_on_what_a_run_made(config, tmp_path, capsys):
    run = str(config.parent / "run")
    assert main(["train", str(config)]) == 0
    assert main(["export", run, "kappa=0.5", f"out={tmp_path}/half"]) == 2
    assert "no best ticket of kappa 0.5 is known" in capsys.readouterr().err
    assert main(["tickets", run, "kappa=0.5,0.75", "draws=3", "mix=2"]) == 0
    told = json.loads((config.parent / "run" / "tickets.json").read_text())["kappas"]
    assert list(told) == ["0.5", "0.75"] and len(told["0.5"]["losses"]) == 3
    assert told["0.5"]["mix"]["loss"] <= min(told["0.5"]["losses"])
    for ticket, loss in (("best", min(told["0.5"]["losses"])), ("mix", told["0.5"]["mix"]["loss"])):
        out = tmp_path / ticket
        assert main(["export", run, "kappa=0.5", f"ticket={ticket}", f"out={out}"]) == 0
        data = f"data={config.parent}/text.txt"
        assert main(["measure", str(out), data, "max_length=32", f"out={tmp_path}/m.json", "new_tokens=0"]) == 0
        assert json.loads((tmp_path / "m.json").read_text())["parameters"] < 91_000
        assert f"validation perplexity {np.exp(loss):.2f}" in capsys.readouterr().out
    assert main(["measure", str(tmp_path / "best"), "new_tokens=512"]) == 2
    assert "given 512, expected fewer than the model's 512 positions" in capsys.readouterr().err
    assert main(["export", run, "kappa=1", f"out={tmp_path}/full", "dtype=bfloat16"]) == 0
    size = (tmp_path / "full" / "model.safetensors").stat().st_size / 1e6
    assert f"| {size:.1f} MB of {size:.1f} MB |" in (tmp_path / "full" / "README.md").read_text()
    assert main(["report", run]) == 0
    page = (config.parent / "run" / "report.html").read_text()
    assert "kappa 0.75" in page and "mix of layers" in page


def test_an_exported_ticket_scores_what_its_run_said(config, tmp_path):
    from jaxlm.models.perplexity import perplexity
    from twistjax.training.scoring import model_loss

    run = config.parent / "run"
    assert main(["train", str(config)]) == 0 and main(["tickets", str(run), "draws=2"]) == 0
    assert main(["export", str(run), "kappa=0.5", f"out={tmp_path}/half"]) == 0
    told = json.loads((run / "tickets.json").read_text())["kappas"]["0.5"]
    rows = prepare(load_config(TwistConfig, config)).validation
    _, model = load_model(tmp_path / "half", dtype=np.dtype("float32"))
    loss = model_loss(model, rows.tokens, rows.targets, 2)
    assert perplexity(loss) == pytest.approx(told["perplexity"]["best"], rel=1e-5)


def test_a_small_dense_model_with_wide_ends_is_trained_as_a_whole(config):
    from twistjax.comparison.baselines import Bench

    deep = ["subnetworks.protected_first=1", "training.train_samples=8"]
    bench = Bench(load_config(TwistConfig, config, deep), Console(quiet=True))
    losses, parameters = bench._small(0.5, taught=False)
    assert np.isfinite(losses).all() and parameters < 91_000


def test_whole_models_learn_from_the_teacher_of_the_run_which_reads_the_rows_once(config, tmp_path, monkeypatch):
    from twistjax.comparison.baselines import Bench
    from twistjax.training import teacher

    given = str(write_teacher(tmp_path / "teacher"))
    taught = load_config(TwistConfig, config, [f"training.teacher={given}", "training.train_samples=8"])
    bench = Bench(taught, Console(quiet=True))
    assert [one.kappa for one in bench.run({"dense, distilled"})] == [1.0]
    monkeypatch.setattr(teacher, "load_model", None)
    whole, small = bench.run({"dense, distilled", "small dense, distilled"})
    assert (small.kappa, small.parameters < whole.parameters) == (0.5, True)
    arms = config.parent / "run" / "baselines"
    for name in ("dense-distilled", "small-0.5-distilled"):
        assert load_config(TwistConfig, arms / name / "config.yaml").training.teacher == given
        assert (arms / name / "teacher" / "tokens.npy").stat().st_nlink == 2, "one file under two names"


def test_baselines_train_prune_and_go_on_where_they_were(config, capsys, monkeypatch):
    monkeypatch.setattr("twistjax.comparison.baselines.PATTERNS", {"50 %": Sparsity(0.5)})
    assert main(["train", str(config)]) == 0
    keys = ["baselines.draws=2", "baselines.calibration_rows=4"]
    assert main(["baselines", str(config), *keys]) == 0
    first = json.loads((config.parent / "run" / "baselines.json").read_text())["results"]
    assert {"dense, fine-tuned", "TwIST ticket", "small dense, fine-tuned", "SparseGPT 50 %"} <= {
        one["arm"] for one in first
    }
    assert {"dense, before training", "SparseGPT 50 % of the model before training"} <= {one["arm"] for one in first}
    losses = {one["arm"]: one["losses"] for one in first if one["kappa"] == 1 or "SparseGPT 50 %" in one["arm"]}
    assert losses["dense, before training"] != losses["dense, fine-tuned"]
    assert losses["SparseGPT 50 % of the model before training"] != losses["SparseGPT 50 %"]
    structures = {one["arm"]: one["losses"] for one in first if "structure" in one["arm"]}
    assert structures["Wanda structure, repaired"] != structures["Wanda structure"]
    small = {one["parameters"] for one in first if one["arm"] in ("TwIST ticket", "small dense, fine-tuned")}
    assert len(small) == 1
    capsys.readouterr()
    assert main(["baselines", str(config), *keys]) == 0
    assert "perplexity" not in capsys.readouterr().out
    assert json.loads((config.parent / "run" / "baselines.json").read_text())["results"] == first
    assert main(["report", str(config.parent / "run")]) == 0
    assert "Comparison" in (config.parent / "run" / "report.html").read_text()
