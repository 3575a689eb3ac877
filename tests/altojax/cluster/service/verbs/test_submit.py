"""The queue's verbs: what is wrong is said before anything is queued, and what is queued is followed to its end."""

import json
import os
import threading
from pathlib import Path

import pytest
from queues import ScriptedEngine, finish, orchestrate, snapshot

from altojax.cli import main
from altojax.cluster.service.engine_config import LocalSection
from altojax.cluster.service.queue.store import View
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.verbs.serve import ServeConfig, serve
from altojax.cluster.tenancy.members import Members
from altojax.config.tune_config import TuneConfig
from jaxrun.store.journal import Journal

TINY = Path(__file__).parents[5] / "configs" / "tiny"
TASK = """
output_dir: runs/sums
model: {{model_name_or_path: {base}, random_init: true}}
early_exit: {{preset: eager}}
search: {{lora_rank: [2, 4], learning_rate: [1.0e-3, 1.0e-2], train_samples: 60}}
tasks:
  - {{name: sums, data: {{train: sums.jsonl, validation_samples: 6, max_length: 32}}}}
queue: {{gpus: [2, 1, 2]}}
"""
ENDS = 'end="$1/attempt-$2.json"; echo "{\\"code\\": 0, \\"outcome\\": \\"ended\\"}" >"$end.new"; mv "$end.new" "$end"'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a task; the queue is named by the environment."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.format(base=TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALTOJAX_QUEUE", str(tmp_path / "queue"))
    return tmp_path


def refused(capsys, *argv: str) -> str:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_task_is_queued_with_paths_that_hold_anywhere_and_what_it_comes_to(here, capsys):
    assert main(("submit", "task.yaml", "seed=5", "queue.tenant=maths")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "sums-1" and "altojax serve" in out
    assert main(("queue",)) == 0
    assert "sums-1" in capsys.readouterr().out
    members = Members(os.getuid(), {"maths": frozenset()})
    finish(orchestrate(here / "queue", ScriptedEngine({"a": 2}), members=members))
    view = View.read(here / "queue")
    job = view.job("sums-1")
    view.close()
    assert job is not None and job.tenant == "maths"
    submitted = Submission.from_json(job.content)
    config = TuneConfig.model_validate_json(submitted.config)
    assert (config.output_dir, config.tasks[0].data.train) == (str(here / "runs" / "sums"), str(here / "sums.jsonl"))
    assert config.seed == 5 and submitted.gpus == (1, 2) and submitted.trials == 4
    assert 60 <= submitted.samples < 4 * 60, "early exit is counted in"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["queue.gpu=[1]"], "queue.gpu: unknown key"),
        (["queue.gpus=[0]"], "queue.gpus.0"),
        (["tasks.0.data.train=sum.jsonl"], "sum.jsonl"),
        (["tasks.0.data.max_length=4096"], None),
        (["search.target_modules=[q_prj]"], "q_prj"),
        (["model.model_name_or_path=./nowhere"], "nowhere"),
        (["wait=maybe"], "wait"),
        (["queue.tenant=a/b"], "queue.tenant"),
    ],
)
def test_what_tune_would_stop_at_is_said_before_anything_is_queued(here, capsys, words, said):
    if said is None:
        assert main(("submit", "task.yaml", *words)) == 0
        return
    assert said in refused(capsys, "submit", "task.yaml", *words)
    assert not (here / "queue").exists()


def test_a_folder_that_a_live_task_writes_is_refused_at_once(here, capsys):
    assert main(("submit", "task.yaml")) == 0
    assert "is where sums-1 writes" in refused(capsys, "submit", "task.yaml", "seed=1")
    assert len(snapshot(here / "queue").jobs) == 1


def test_overwrite_discards_an_old_run_and_nothing_else(here, capsys):
    run = here / "runs" / "sums"
    Journal.open(run, config_text="a: 1\n", identity="x").close()
    (run / "trials.csv").touch()
    (run / "mine.txt").touch()
    (run / "sums").mkdir()
    (here / "sums.jsonl").rename(run / "sums" / "mine.jsonl")
    rows = f"tasks.0.data.train={run}/sums/mine.jsonl"
    assert "tasks.0.data.train: " in refused(capsys, "submit", "task.yaml", "overwrite=true", rows)
    (run / "sums" / "mine.jsonl").rename(here / "sums.jsonl")
    assert main(("submit", "task.yaml", "overwrite=true")) == 0
    assert sorted(path.name for path in run.iterdir()) == ["journal.lock", "mine.txt"]
    assert "no run's journal" in refused(
        capsys, "submit", "task.yaml", "overwrite=true", f"output_dir={here / 'runs'}", "queue=other"
    )
    assert (run / "mine.txt").exists()


def test_verbs_say_what_is_not_there(here, capsys):
    assert "no queue here" in refused(capsys, "queue")
    assert "no queue here" in refused(capsys, "cancel", "sums-1")
    assert main(("submit", "task.yaml")) == 0
    assert "did you mean 'sums-1'?" in refused(capsys, "pause", "sums1")
    assert "did you mean 'sums-1'?" in refused(capsys, "queue", "sum-1")
    assert main(("cancel", "sums-1")) == 0
    assert "nobody serves the queue now" in capsys.readouterr().out
    finish(orchestrate(here / "queue", ScriptedEngine({"a": 2}, holds=True), members=Members(os.getuid())))
    assert main(("queue", "sums-1", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "cancelled"
    assert "sums-1: cancelled already" in refused(capsys, "resume", "sums-1")


def test_serve_says_where_the_token_of_its_page_is_and_not_the_token(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("altojax.cluster.service.page.server.secrets.token_urlsafe", lambda length: "the-token")
    config = ServeConfig(queue=str(tmp_path / "queue"), engine=LocalSection(gpus=1), until_idle=True)
    assert serve(config) == 0
    said = "".join(capsys.readouterr())
    assert "page: http://127.0.0.1:" in said and f"{tmp_path / 'queue' / 'serve.json'}" in said
    assert "the-token" not in said


def test_one_submits_waits_and_learns_how_it_ended_while_another_serves(here, capsys):
    assert main(("submit", "task.yaml")) == 0
    config = ServeConfig(
        queue=str(here / "queue"),
        engine=LocalSection(gpus=2, worker=["sh", "-c", ENDS, "worker"]),
        page=None,
        until_idle=True,
    )
    codes: list[int] = []
    served = threading.Thread(target=lambda: codes.append(serve(config)))
    served.start()
    code = main(("submit", "task.yaml", "output_dir=runs/second", "wait=true"))
    served.join(30)
    if served.is_alive() or not codes:
        pytest.fail("serve did not end")
    if code != 0:  # it had ended by itself before the second task came
        assert snapshot(here / "queue").job("sums-1").status == "ended"  # type: ignore[union-attr]
    assert codes == [0]
