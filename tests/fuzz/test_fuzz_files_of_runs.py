"""Other files of a run, or given to a verb: arrays of checkpoints, tickets, results, curves."""

import json

import numpy as np
import pytest
from damage import as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st

from altojax.report.curve_files import read_curves
from altojax.report.replay import run_replay
from jaxlm.files.checkpoint import load_tree, save_tree
from twistjax.report.results import read_results
from twistjax.report.ticket_file import read_tickets

CURVES = b"group,trial,step,max_steps,train_loss,val_loss\n" + b"".join(
    b"g,t%d,%d,100,%g,%g\n" % (trial, step, 2 / (1 + step), 2.1 / (1 + step))
    for trial in range(3)
    for step in (0, 50, 100)
)
TICKETS = {
    "facts": {"round": 3, "seed": 0, "full_perplexity": 12.5},
    "kappas": {
        "0.5": {
            "perplexity": {"mean": 20.0, "sd": 1.0, "best": 19.0},
            "best": 1,
            "losses": [3.0, 2.9],
            "mix": {"loss": 2.8, "heads": [[0, 1]], "kv_heads": [[0]], "neurons": [[0, 2]]},
        }
    },
}
RESULTS = {"config": {"seed": 0}, "results": [{"arm": "dense", "kappa": 1.0, "losses": [2.0], "parameters": 10}]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # storage forgets what it began
def test_arrays_of_a_checkpoint(tmp_path):
    tree = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": {"c": np.ones(5, np.int32)}}
    save_tree(tmp_path / "whole", tree)
    files = sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in files}

    def read(change) -> None:
        path, content = change
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            load_tree(tmp_path / "whole", tree)
        finally:
            path.write_bytes(contents[path])

    one = st.sampled_from(files)
    fuzz(read, one.flatmap(lambda path: st.tuples(st.just(path), st.none() | damaged(contents[path]))))


@pytest.mark.parametrize("kind", ["csv", "csv.gz"])
def test_curve_files(kind, tmp_path):
    path = tmp_path / f"curves.{kind}"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_curves(path)
        run_replay(path)

    words = [b"nan", b"inf", b"-1", b"1e400", b",", b'"', b"group"]
    fuzz(read, damaged(CURVES, words))


@pytest.mark.parametrize(
    ("name", "whole", "reader"), [("tickets.json", TICKETS, read_tickets), ("baselines.json", RESULTS, read_results)]
)
def test_tickets_and_results(name, whole, reader, tmp_path):
    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        reader(tmp_path)

    fuzz(read, changed(whole).map(as_json) | damaged(json.dumps(whole).encode()))
