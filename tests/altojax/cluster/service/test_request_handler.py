"""A bad submission is refused before it is stored, whoever wrote its file."""

import os
from pathlib import Path

import pytest
from queues import ScriptedEngine, config_of, leave, orchestrate, submission

from altojax.cluster.service.queue.requests import Request


@pytest.fixture
def take(tmp_path):
    """Takes a submission of this user's under a word, and returns why it is refused."""
    orchestrator = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}))
    orchestrator.turn()

    def answer(word: str, output_dir: Path) -> str:
        content = submission(config_of(output_dir)).to_json()
        request = Request("submit", word, "ann", os.getuid(), "me", 0.0, content, id=1)
        return orchestrator._desk.take(request, 1.0).answer.error

    yield answer
    leave(orchestrator)


@pytest.mark.parametrize("word", ["../../elsewhere/sums", "/tmp/sums", "sums/sums", "", "other", "sums\0"])
def test_a_task_whose_folder_would_have_another_name_than_its_own_is_refused(tmp_path, take, word):
    assert "its config is of another run" in take(word, tmp_path / "x")
    assert take("sums", tmp_path / "x") == ""


def test_no_folder_is_kept_for_a_task_that_could_not_write_it(take):
    assert "cannot be written" in take("sums", Path("/proc/sums"))
