"""The page of a real queue: what is submitted shows, and what is asked of the page reaches the orchestrator."""

import http.client
import json
import stat
import sys
from contextlib import closing

import pytest
from queues import ME, Caller, ScriptedEngine, leave, orchestrate, put

from altojax.cli import main
from altojax.cluster.service.page.server import serve_page
from altojax.cluster.service.queue.queue_view import Reader
from altojax.cluster.service.queue.store import View
from altojax.cluster.tenancy.members import Members
from jaxrun.process.errors import UserError


def get(address, path, method="GET", token=None):
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    with closing(http.client.HTTPConnection(address.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or "null")


def statuses(address, token=None):
    return {row["name"]: row["status"] for row in get(address, "/state.json", token=token)[1]["rows"]}


def test_what_is_asked_of_the_page_reaches_the_orchestrator(in_memory):
    queue = in_memory / "queue"
    put(queue, in_memory / "a", caller=ME)
    with serve_page(queue, 0, private=False) as address:
        assert statuses(address) == {"sums-1": "submitted"}
        orchestrator = orchestrate(queue, ScriptedEngine({"here": 2}, holds=True), members=Members(ME.uid))
        orchestrator.turn()
    put(queue, in_memory / "b", caller=ME, gpus=(2,))
    with serve_page(queue, 0, private=False) as address:
        orchestrator.turn()
        state = get(address, "/state.json")[1]
        assert statuses(address) == {"sums-1": "running", "sums-2": "waiting"}
        assert {bar["task"]: bar["kind"] for bar in state["bars"]} == {"sums-1": "running", "sums-2": "planned"}
        assert (state["gpus"], state["busy"], state["alive"]) == (2, 1, True)
        assert get(address, "/jobs/sums-1/cancel", "POST")[0] == 401
        assert get(address, "/jobs/sums-1/cancel", "POST", address.token)[0] == 202
        assert get(address, "/jobs/sums-2/pause", "POST", address.token)[0] == 202
        for _ in range(4):
            orchestrator.turn()
    leave(orchestrator)
    with closing(Reader(queue)) as reader:
        assert {job.name: job.status for job in reader.snapshot().jobs} == {"sums-1": "cancelled", "sums-2": "paused"}


def test_a_request_that_is_refused_has_no_tenant(in_memory):
    queue = in_memory / "queue"
    put(queue, in_memory / "a", caller=Caller(2003, "eve"))
    orchestrator = orchestrate(queue, ScriptedEngine({"here": 1}))
    orchestrator.turn()
    leave(orchestrator)
    with serve_page(queue, 0, private=False) as address:
        [row] = get(address, "/state.json", token=address.token)[1]["rows"]
    assert (row["status"], row["tenant"]) == ("refused", "") and "eve" not in row["note"]


def test_an_unknown_task_is_one_line_with_the_nearest(in_memory):
    queue = in_memory / "queue"
    put(queue, in_memory / "a")
    with serve_page(queue, 0, private=False) as address:
        status, answer = get(address, "/jobs/sum-1/cancel", "POST", address.token)
    assert status == 409 and "has no task 'sum-1' (did you mean 'sums-1'?)" in answer["error"]
    with closing(View.read(queue)) as view:
        assert [one.kind for one in view.requests()] == ["submit"]


def test_the_token_is_for_who_serves_and_goes_with_the_page(in_memory):
    queue = in_memory / "queue"
    put(queue, in_memory / "a")
    file = queue / "serve.json"
    with serve_page(queue, 0, private=False) as address:
        told = json.loads(file.read_text())
        assert (told["url"], told["token"]) == (address.url, address.token)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(address.token) >= 43
        with serve_page(queue, 0, private=False) as successor:
            assert successor.token != address.token
            assert json.loads(file.read_text())["url"] == successor.url
        assert not file.exists()
        file.write_text("of another successor")
    assert file.read_text() == "of another successor"


def test_a_folder_without_a_queue_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no queue here"), serve_page(tmp_path, 0, private=False):
        pass


def test_without_the_extra_a_page_is_refused_in_one_line_and_a_queue_is_served_without_one(
    tmp_path, monkeypatch, capsys
):
    page = {f"altojax.cluster.service.page.{name}" for name in ("app", "connections", "server")}
    for name in [one for one in sys.modules if one in page or one.partition(".")[0] in ("starlette", "uvicorn")]:
        monkeypatch.setitem(sys.modules, name, None)
    words = ["serve", f"queue={tmp_path / 'queue'}", "engine=here", "until_idle=true"]
    assert main(words) == 2
    refused = capsys.readouterr().err
    told = "page: starlette and uvicorn are not installed, expected pip install 'altojax[serve]', or page=null for none"
    assert refused.count("\n") == 1 and told in refused
    assert not (tmp_path / "queue").exists()
    assert main([*words, "page=null"]) == 0
    served = capsys.readouterr()
    assert served.err == "" and "serving" in served.out
