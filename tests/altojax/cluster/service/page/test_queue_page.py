"""The page over HTTP: whoever reads it changes nothing, and only the token's holder, from the page itself, changes."""

import contextlib
import gzip
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from made_up_queue import Told, busy, job, queue
from runs import write_run

from altojax.cluster.service.page.app import make_app
from altojax.cluster.service.page.feed import Feed
from altojax.cluster.service.page.server import served
from jaxrun.process.errors import UserError

TOKEN = "k3y"


class Client:
    """Asks one page, and remembers what it asked of the queue."""

    def __init__(self, url: str, source: Told, asked: list) -> None:
        self.host = url.removeprefix("http://")
        self.source = source
        self.asked = asked

    def __call__(self, path: str, method: str = "GET", **headers: str):
        connection = http.client.HTTPConnection(self.host, timeout=10)
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.putrequest(method, path, skip_host="host" in given, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            answer.content = answer.read()
            return answer

    def post(self, path: str, **headers: str):
        return self(path, "POST", **headers)

    def state(self, **headers: str) -> dict:
        return json.loads(self("/state.json", **headers).content)


@contextlib.contextmanager
def serving(source, *, private=False, refuse=None, clock=time.monotonic):
    asked = []

    def ask(name, wish):
        if refuse is not None:
            raise UserError(refuse)
        asked.append((name, wish))

    with ThreadPoolExecutor(1) as reading:
        app = make_app(Feed(source, "ada", private=private, clock=clock), reading, ask, TOKEN)
        with served(app, 0) as url:
            yield Client(url, source, asked)


@pytest.fixture(scope="module")
def page():
    with serving(Told(busy(40))) as client:
        yield client


@pytest.fixture(autouse=True)
def forgotten(request):
    if "page" in request.fixturenames:
        request.getfixturevalue("page").asked.clear()


def bearer(token=TOKEN):
    return {"authorization": f"Bearer {token}"}


def test_the_state_tells_every_task(page):
    state = page.state()
    assert [row["name"] for row in state["rows"]] == [job.name for job in page.source.now.jobs]
    assert state["busy"] == sum(len(gpus) for job in page.source.now.jobs for gpus in job.gpus.values())
    assert sum(tenant["used"] for tenant in state["tenants"]) == pytest.approx(1)
    assert sum(tenant["due"] for tenant in state["tenants"]) == pytest.approx(1)


def test_what_a_reader_knows_is_not_sent_again(page):
    first = page("/state.json")
    again = page("/state.json", if_none_match=first.headers["etag"])
    assert (first.status, again.status, again.content) == (200, 304, b"")
    assert float(again.headers["queue-now"]) >= float(first.headers["queue-now"])


def test_a_packed_answer_is_the_same(page):
    packed = page("/state.json", accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.content) == page("/state.json").content


def test_many_readers_ask_the_store_once():
    time_s = iter(0.01 * step for step in range(10**6))
    with serving(Told(busy(10)), clock=lambda: next(time_s)) as page, ThreadPoolExecutor(16) as readers:
        bodies = list(readers.map(lambda _: page("/state.json").content, range(64)))
    assert len(set(bodies)) == 1
    # A reader looks at the clock a few times; the store is asked once a second.
    assert page.source.asked <= 4


def test_no_token_changes_nothing(page):
    for given in ({}, bearer(""), bearer("wrong"), bearer(TOKEN + "x"), {"authorization": f"Basic {TOKEN}"}):
        for path in ("/jobs/support-1/cancel", "/jobs/support-1/pause", "/jobs/support-1/resume", "/token"):
            answer = page.post(path, **given)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert "expected the token" in json.loads(answer.content)["error"]
    assert page.asked == []


@pytest.mark.parametrize("wish", ["cancel", "pause", "resume"])
def test_the_token_changes(page, wish):
    answer = page.post(f"/jobs/support-1/{wish}", **bearer())
    assert answer.status == 202
    assert page.asked == [("support-1", wish)]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_a_foreign_name_for_the_page_is_refused(page, host):
    for method, path in (("GET", "/"), ("GET", "/state.json"), ("POST", "/jobs/support-1/cancel")):
        assert page(path, method, host=host, **bearer()).status == 400
    assert page.asked == []


def test_the_names_of_loopback_are_taken_at_any_port(page):
    port = page.host.partition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost:9999"):
        assert page("/state.json", host=host).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://{own}"])
def test_a_foreign_page_changes_nothing_even_with_the_token(page, origin):
    answer = page.post("/jobs/support-1/cancel", origin=origin.format(own=page.host), **bearer())
    assert answer.status == 403
    assert page.asked == []


def test_the_page_itself_may_change(page):
    assert page.post("/jobs/support-1/cancel", origin=f"http://{page.host}", **bearer()).status == 202


def test_reading_never_changes(page):
    for path in ("/jobs/support-1/cancel", "/token"):
        assert page(path, **bearer()).status in (404, 405)
    assert page.post("/jobs/support-1/explode", **bearer()).status == 404
    assert page.asked == []


def test_what_the_queue_refuses_is_one_line():
    with serving(Told(queue()), refuse="nosuch-9: no such task, expected one of the queue's") as page:
        answer = page.post("/jobs/nosuch-9/cancel", **bearer())
    assert answer.status == 409
    assert json.loads(answer.content) == {"error": "nosuch-9: no such task, expected one of the queue's"}


def test_every_answer_keeps_to_itself(page):
    for path in (
        "/",
        "/main.js",
        "/page.css",
        "/queue.css",
        "/icon.svg",
        "/state.json",
        "/nosuch",
        "/jobs/nosuch/losses.json",
    ):
        headers = page(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in headers and "access-control-allow-origin" not in headers
    assert "content-security-policy" in page("/", host="evil.example").headers


def test_nothing_outside_the_pages_folder_is_served(page):
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/static/../../server.py", "//etc/passwd"):
        assert page(path).status == 404


def test_a_store_that_cannot_be_read_is_one_line_and_the_page_lives_on():
    source = Told(queue())

    def broken():
        raise UserError("queue.db: input/output error")

    with serving(source) as page:
        source.snapshot, whole = broken, source.snapshot
        answer = page("/state.json")
        assert answer.status == 503 and json.loads(answer.content) == {"error": "queue.db: input/output error"}
        source.snapshot = whole
        assert page("/state.json").status == 200


def test_a_run_is_looked_at_as_the_user_whose_it_is(tmp_path):
    looked = []

    @contextlib.contextmanager
    def as_user(uid):
        looked.append(uid)
        raise PermissionError(13, "Permission denied")
        yield

    source = Told(queue([job("sums-1", journal_dir=str(tmp_path), uid=2001)]))
    with pytest.raises(UserError, match="permission denied"):
        Feed(source, "ada", files=as_user).losses("sums-1", trusted=True)
    assert looked == [2001]


def test_losses_are_those_of_the_tasks_run(tmp_path):
    run = str(write_run(tmp_path, tasks=("reviews", "sql"), trials=6, live_at=120))
    one = job("both-1", status="running", journal_dir=run, tasks=("reviews", "sql"), gpus={"gpu-1": (0,)})
    part = job("part-2", status="merged", journal_dir=run, tasks=("sql",), merged_into="both-1")
    with serving(Told(queue([one, part, job("later-3")]))) as page:
        first = page("/jobs/both-1/losses.json")
        again = page("/jobs/both-1/losses.json", if_none_match=first.headers["etag"])
        losses = json.loads(first.content)
        assert [one["task"] for one in losses] == ["reviews", "sql"]
        for one in losses:
            assert one["split"] == "validation" and one["trials"] == 6 and one["curves"]
            for curve in one["curves"]:
                finite = [loss for loss in curve["losses"] if loss is not None]
                assert len(curve["samples"]) == len(curve["losses"]) and curve["best"] == min(finite)
        assert again.status == 304
        assert [one["task"] for one in json.loads(page("/jobs/part-2/losses.json").content)] == ["sql"]
        assert json.loads(page("/jobs/later-3/losses.json").content) == []
        assert page("/jobs/nosuch/losses.json").status == 404


@pytest.mark.parametrize(("private", "other"), [(True, "ada"), (False, "bob")])
def test_notes_and_losses_of_several_users_need_the_token(tmp_path, private, other):
    run = str(write_run(tmp_path, tasks=("sql",), trials=3, live_at=60))
    one = job("sql-1", reason="cannot read /home/ada/secret", journal_dir=run, tasks=("sql",))
    with serving(Told(queue([one, job("sql-2", user=other)])), private=private) as page:
        assert "secret" not in page("/state.json").content.decode()
        assert page("/jobs/sql-1/losses.json").status == 401
        assert page.state(**bearer())["rows"][0]["note"] == "cannot read /home/ada/secret"
        assert json.loads(page("/jobs/sql-1/losses.json", **bearer()).content)[0]["task"] == "sql"


def test_a_port_in_use_is_one_line(page):
    port = int(page.host.partition(":")[2])
    app = make_app(Feed(page.source, "ada"), ThreadPoolExecutor(1), lambda job, wish: None, TOKEN)
    with (
        pytest.raises(UserError, match=f"^port={port}: Address already in use, expected a free port"),
        served(app, port),
    ):
        pass


def test_a_long_history_is_cut_at_its_old_end_only():
    jobs = [job(f"old-{i}", status="ended", started_s=0.0, ended_s=float(i), end_s=float(i)) for i in range(700)]
    with serving(Told(queue([*jobs, job("new-1")], now_s=800.0))) as page:
        state = page.state()
    assert state["older"] == 200 and state["counts"]["ended"] == 700
    assert {row["name"] for row in state["rows"]} == {"new-1", *(f"old-{i}" for i in range(200, 700))}
