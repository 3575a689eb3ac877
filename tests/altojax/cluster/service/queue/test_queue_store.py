"""The store of a queue: one writer at a time, all of a transaction or nothing, nothing taken twice."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from queues import ScriptedEngine, leave, orchestrate, put

from altojax.cluster.scheduling.records import NodeChanged, Start
from altojax.cluster.service.queue import lease
from altojax.cluster.service.queue.store import Answer, Store, View
from jaxrun.process.errors import UserError

RECORD = NodeChanged(0.0, "a", 8)


def expire(queue) -> None:
    with sqlite3.connect(queue / "queue.db") as database:
        database.execute("UPDATE lease SET until_s = ?", (time.time() - 1,))
    database.close()


def test_a_second_orchestrator_is_refused_in_one_line_while_the_first_lives(tmp_path):
    first = Store.take(tmp_path)
    with pytest.raises(UserError, match=rf"process {os.getpid()} on .* orchestrates this queue, expected one"):
        Store.take(tmp_path)
    first.release()
    second = Store.take(tmp_path)
    assert second.token == first.token + 1
    second.release()


def test_one_that_slept_through_its_lease_can_write_no_more(tmp_path):
    asleep = Store.take(tmp_path)
    asleep.commit([RECORD])
    expire(tmp_path)
    awake = Store.take(tmp_path)
    for write in (
        lambda: asleep.commit([RECORD]),
        asleep.renew,
        lambda: asleep.mark_carried(1),
        lambda: asleep.set("policy", {}),
        lambda: asleep.put_profiles({"a": "{}"}),
    ):
        with pytest.raises(UserError, match=r"has taken this queue over \(token 2, given 1\)"):
            write()
    asleep.release()  # lets go of the file, and not of a lease that is no longer its own
    assert awake.holder.until_s > time.time()
    assert [number for number, _ in awake.records()] == [1]
    awake.commit([RECORD])
    awake.release()


def test_one_host_need_not_wait_for_the_lease_of_a_process_that_was_killed(tmp_path):
    script = f"""
import os, pathlib
from altojax.cluster.service.queue.store import Store
store = Store.take(pathlib.Path({str(tmp_path)!r}))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    store = Store.take(tmp_path)
    assert store.token == 2
    store.release()


def test_a_lease_of_another_host_is_waited_for(tmp_path):
    Store.take(tmp_path).release()
    with sqlite3.connect(tmp_path / "queue.db") as database:
        database.execute(
            "UPDATE lease SET host = 'elsewhere', holder = 'process 1 on elsewhere', until_s = ?", (time.time() + 9,)
        )
    database.close()
    with pytest.raises(UserError, match="process 1 on elsewhere orchestrates"):
        Store.take(tmp_path)
    expire(tmp_path)
    Store.take(tmp_path).release()


def test_of_a_transaction_that_fails_nothing_is_kept(tmp_path):
    store = Store.take(tmp_path)
    store.commit([RECORD], answers=[Answer(1, "a-1")], taken=1)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit(
            [Start(1.0, "a-1", 1, {"a": (0,)}, 2.0, "")], answers=[Answer(2, "b-2"), Answer(1, "a-1")], taken=2
        )
    assert (len(store.records()), store.taken, store.answer(2)) == (1, 1, None)
    store.release()


def test_numbers_of_requests_ascend_whoever_writes_them_at_the_same_time(tmp_path):
    queue = tmp_path / "new" / "queue"

    def submit_some(worker: int) -> list[int]:
        return [put(queue, tmp_path / f"{worker}-{i}").id for i in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for some in pool.map(submit_some, range(8)) for number in some]
    assert sorted(numbers) == list(range(1, 81))
    view = View.read(queue)
    assert [one.id for one in view.requests()] == list(range(1, 81))
    assert [one.id for one in view.requests(70, most=3)] == [71, 72, 73]
    view.close()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_queue_is_its_operators_alone_whatever_the_mask_and_the_folder_it_is_put_in(tmp_path, mask):
    queue = tmp_path / "queue"
    queue.mkdir()
    queue.chmod(0o777)
    before = os.umask(mask)
    try:
        put(queue, tmp_path / "out")
        store = Store.take(queue)
    finally:
        os.umask(before)
    store.commit([RECORD])
    assert {path.name: path.stat().st_mode & 0o777 for path in (queue, *queue.iterdir())} == {
        "queue": 0o700,
        **dict.fromkeys(("queue.db", "queue.db-wal", "queue.db-shm", "serve.lock"), 0o600),
    }
    store.release()


def test_a_queue_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "requests.db").touch()
    for call in (lambda: Store.take(tmp_path), lambda: put(tmp_path, tmp_path / "x"), lambda: View.read(tmp_path)):
        with pytest.raises(UserError, match=r"an earlier version \(requests\.db\), expected a new folder; .* again$"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["requests.db"]


def test_a_newer_store_is_left_alone(tmp_path):
    store = Store.take(tmp_path)
    store.set("format_version", 99)
    store.release()
    with pytest.raises(UserError, match="written by a newer version"):
        Store.take(tmp_path)
    with pytest.raises(UserError, match="written by a newer version"):
        View.read(tmp_path)
    with sqlite3.connect(tmp_path / "queue.db") as database:
        database.execute("UPDATE meta SET value = 1 WHERE key = 'format_version'")
    database.close()
    with pytest.raises(UserError, match="written by an earlier version"):
        Store.take(tmp_path)


def test_the_lease_is_renewed_long_before_it_ends(tmp_path):
    store = Store.take(tmp_path)
    expire(tmp_path)
    store.renew()
    assert store.holder.until_s > time.time() + lease.SPAN_S - 1
    store.release()
    assert store.token == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET members = 'none'",
        "UPDATE jobs SET output_dir = x'fffe'",
        "DELETE FROM jobs",
        "UPDATE lease SET token = 'first'",
        "UPDATE lease SET until_s = 'late'",
        "UPDATE meta SET value = '[]' WHERE key = 'carried'",
        "DELETE FROM meta WHERE key = 'taken'",
        "DELETE FROM records WHERE record LIKE '%submitted%'",
        "INSERT INTO records (record) SELECT record FROM records WHERE record LIKE '%\"start\"%'",
    ],
)
def test_records_that_are_damaged_or_contradict_each_other_are_one_line_to_who_serves_next(tmp_path, statement):
    put(tmp_path / "queue", tmp_path / "x")
    first = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}, holds=True))
    first.turn()
    leave(first)
    with contextlib.closing(sqlite3.connect(tmp_path / "queue" / "queue.db")) as database, database:
        assert database.execute(statement).rowcount > 0
    with pytest.raises(UserError, match=r"queue\.db: damaged \(.*expected its records as they were written"):
        orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}))
