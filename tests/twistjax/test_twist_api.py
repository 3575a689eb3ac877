"""A training, its tickets and its models from Python: what the command line makes, and exceptions."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import twistjax
from jaxrun.store.journal import Journal
from twistjax.cli import main

TEXT = "".join(f"{n} and {n + 1} are {2 * n + 1}, which is more than {n * n % 7}.\n" for n in range(100))
TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> twistjax.TwistRun:
    """A finished training of two rounds."""
    root = tmp_path_factory.mktemp("twist")
    (root / "text.txt").write_text(TEXT)
    return twistjax.train(
        {
            "model": {"model_name_or_path": TINY, "random_init": True},
            "data": {"train": root / "text.txt", "max_length": 32, "validation_samples": 4, "chat_template": False},
            "subnetworks": {"workers": 2, "kappa": (0.5,), "block": 16},
            "training": {"local_steps": 2, "batch_size": 2, "train_samples": 8},
        },
        output_dir=root / "run",
        quiet=True,
    )


def test_importing_twistjax_imports_nothing_that_takes_long():
    said = "import sys, twistjax; print(sorted({'jax', 'numpy', 'pydantic'} & set(sys.modules)), twistjax.train)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] <function train")


def test_curves_have_every_loss_of_the_journal(run):
    table = run.curves()
    assert isinstance(table, pandas.DataFrame) and {"full", "kappa 0.5"} == set(table["model"])
    with Journal.read(run.path) as journal:
        assert list(table["loss"]) == [point.loss for point in journal.points()]
    assert repr(run) == f"<TwistRun {run.path}: finished>"


def test_tickets_are_those_of_the_command_line_and_one_of_them_becomes_a_model(run, tmp_path):
    table = run.tickets(draws=3)
    known = json.loads((run.path / "tickets.json").read_text())
    assert list(table["kappa"]) == [0.5] and list(table["best"]) == [known["kappas"]["0.5"]["best"]]
    assert main(["tickets", str(run.path), "draws=3"]) == 0
    assert json.loads((run.path / "tickets.json").read_text()) == known
    made = run.export(tmp_path / "half", kappa=0.5)
    assert made.folder == tmp_path / "half" and made.loss == min(known["kappas"]["0.5"]["losses"])
    ticket = twistjax.load(made.folder)
    assert ticket.config.num_heads == table["heads"][0]
    first, both = (
        ticket.generate("1 and 2 are", max_new_tokens=5),
        ticket.generate(["1 and 2 are"] * 2, max_new_tokens=5),
    )
    assert len(first) == 1 and both == first * 2
    text = tmp_path / "more.txt"
    text.write_text(TEXT)
    assert 0 < ticket.loss(text, max_length=32) < 100


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: twistjax.open_run(run.path / "gone"), "no run here"),
        (lambda run: twistjax.train({}), "config: output_dir: missing"),
        (lambda run: run.tickets(2.0), "tickets: kappa: given 2.0, expected at most 1"),
        (lambda run: run.tickets(draws=0), "tickets: draws: given 0, expected at least 1"),
        (lambda run: run.export("x", kappa=0), "export: kappa: given 0, expected more than 0"),
        (lambda run: twistjax.load(TINY, dtype="int8"), "dtype: given 'int8', expected float32 or bfloat16"),
        (lambda run: twistjax.load(run.path), "expected"),
    ],
)
def test_a_wrong_call_raises_one_line(run, call, said):
    with pytest.raises(twistjax.UserError) as caught:
        call(run)
    assert said in str(caught.value) and "\n" not in str(caught.value)
