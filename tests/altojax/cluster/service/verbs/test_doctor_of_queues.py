"""The doctor refuses a task that submit refuses, and a queue's file that serve does, in the same words."""

import json
import socket
from pathlib import Path

import pytest

from altojax.cli import main
from altojax.cluster.service.queue.store import Store

TINY = Path(__file__).parents[5] / "configs" / "tiny"


@pytest.fixture
def task(tmp_path):
    """Writes a task; keys replace others."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row number {i}"}) + "\n" for i in range(12)))
    run = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True},
        "search": {"lora_rank": 2, "train_samples": 4},
        "early_exit": "none",
        "queue": {"gpus": [2, 1]},
        "tasks": [{"name": "rows", "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 32}}],
    }

    def write(**more):
        (tmp_path / "task.yaml").write_text(json.dumps(run | more))
        return str(tmp_path / "task.yaml")

    return write


def refusals(capsys, verb, *words):
    """What the doctor and a verb say, which must be one and the same line."""
    said = []
    for one in ("doctor", verb):
        assert main([one, *words]) == 2, one
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and said[0].count("\n") == 1
    return said[0]


def test_a_task_that_the_queue_takes_is_fine_and_nothing_is_written(task, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", task(), f"queue={tmp_path / 'queue'}"]) == 0
    told = capsys.readouterr().out
    assert "fine, for altojax submit" in told and "1 or 2" in told and f"{tmp_path / 'queue'}: new" in told
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [tmp_path / "task.yaml"]


def test_a_task_that_submit_refuses_is_refused(task, tmp_path, capsys):
    words = (f"queue={tmp_path / 'queue'}",)
    assert "gpus" in refusals(capsys, "submit", task(queue={"gpus": [0]}), *words)
    gone = [{"name": "rows", "data": {"train": str(tmp_path / "gone.jsonl")}}]
    assert "gone.jsonl" in refusals(capsys, "submit", task(tasks=gone), *words)
    with_store(tmp_path / "queue")
    assert "is no tenant of user" in refusals(capsys, "submit", task(queue={"tenant": "freebie"}), *words)


def with_store(folder):
    Store.take(folder).release()
    assert main(["serve", f"queue={folder}", "engine=here", "page=null", "until_idle=true"]) == 0


def test_a_queue_that_can_be_served_is_fine_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "queue.yaml").write_text(f"queue: {tmp_path / 'queue'}\nengine: {{kind: local, gpus: 2}}\n")
    assert main(["doctor", str(tmp_path / "queue.yaml")]) == 0
    told = capsys.readouterr().out
    assert "fine, for altojax serve" in told and "1 node with 2 GPUs" in told
    assert [path.name for path in tmp_path.iterdir()] == ["queue.yaml"]


def test_a_file_that_serve_refuses_is_refused(tmp_path, capsys):
    file = tmp_path / "queue.yaml"
    file.write_text(f"queue: {tmp_path / 'queue'}\nengine: here\n")
    tenants = "tenants={a: {users: [nobody-at-all]}}"
    assert "'nobody-at-all' is no user of this host" in refusals(capsys, "serve", str(file), tenants)
    assert "engine" in refusals(capsys, "serve", str(file), "engine.kind=slrum")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port={port}: " in refusals(capsys, "serve", str(file), f"page.port={port}")
    store = Store.take(tmp_path / "queue")
    assert "orchestrates this queue" in refusals(capsys, "serve", str(file))
    store.release()
    (tmp_path / "file").write_text("")
    assert "is a file" in refusals(capsys, "serve", str(file), f"queue={tmp_path / 'file'}")
