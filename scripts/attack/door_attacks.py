"""Attacks of anybody on the host at the doors of a queue: the spool that takes requests, and the page."""

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable

from attack_stage import Stage

from altojax.cluster.service.queue import spool

HALF_OPEN = 600
IDLE = 1100
NAMES = (
    *(
        "..",
        ".",
        "../ann",
        "a/b",
        "a\x00b",
        "a\nb",
        "\x1b[31m",
        "-rf",
        " ",
        "x" * 101,
        "x" * 254,
        "é" * 60,
        "\u202egnp",
    ),
    *("plots", "report.html", "trials.csv", "journal.db", "task.yaml", "fence.json", "con", "sums-1"),
)
"""Names of tasks, few of which are to be taken."""


def flood(stage: Stage, chance: random.Random) -> None:
    """Requests as fast as they can be written, for whose answers nobody waits."""
    submission = stage.submission(stage.config(stage.mallory)).to_json()

    def many() -> None:
        for _ in range(500):
            spool.send(stage.queue, spool.new_letter(stage.queue, "submit", "sums", content=submission))

    write_raw(stage, many)


def raw_file(stage: Stage, chance: random.Random) -> None:
    """What lies in the spool and is no request, or one that somebody else should have written."""
    victim = chance.choice([stage.ann, stage.operator])
    submission = stage.submission(stage.config(stage.mallory)).to_json()
    letter = spool.new_letter(stage.queue, "submit", "sums", content=submission)
    path = stage.queue / "spool" / chance.choice([letter.token, letter.token, ".new-" + letter.token, "x" * 255, "\n"])
    changed = {
        "job": chance.choice([*NAMES, "../../mallory/x", str(victim.home / "private" / "x"), "sums"]),
        "tenant": chance.choice(["ann", None, "mallory", "\x1b"]),
        "queue": chance.choice([letter.queue, "/", letter.queue + "/x"]),
        "kind": chance.choice(["submit", "cancel", "look", "drop"]),
        "token": chance.choice([letter.token, "0" * 32, "../../queue.db"]),
        "asked_s": chance.choice([0, -1e18, 1e300, float("nan")]),
    }
    key = chance.choice(list(changed))
    said = json.dumps({**letter.model_dump(), key: changed[key]}).encode()

    def write() -> None:
        match chance.randrange(8):
            case 0:
                os.mkfifo(path)
            case 1:
                path.mkdir()
            case 2:
                path.symlink_to(
                    chance.choice([victim.rows, stage.queue / "queue.db", stage.queue / "serve.json", "/dev/zero"])
                )
            case 3:
                os.link(chance.choice([victim.rows, stage.queue / "serve.json", stage.mallory.rows]), path)
            case 4:
                with path.open("wb") as file:
                    file.truncate(2**40)
            case 5:
                path.write_bytes(
                    chance.choice([b"", b"{", b"\x00" * 99, b"[" * 100_000, said[: len(said) // 2], b'{"a":' * 9999])
                )
                path.chmod(chance.choice([0o000, 0o644, 0o666]))
            case _:
                path.write_bytes(said)
                path.chmod(0o644)

    write_raw(stage, write)


def junk(stage: Stage, chance: random.Random) -> None:
    """Thousands of files in the spool that are no requests."""

    def many() -> None:
        for number in range(5000):
            path = stage.queue / "spool" / f"junk-{chance.randrange(10**9)}-{number}"
            path.mkdir() if number % 2 else path.touch()

    write_raw(stage, many)


def write_raw(stage: Stage, write: Callable[[], None]) -> None:
    """Writes past the client, as the attacker; what the kernel does not allow is no attack."""
    if stage.apart:
        with contextlib.suppress(RuntimeError):
            stage.as_user(stage.mallory, write)


def page(stage: Stage, chance: random.Random) -> None:
    """A request to the page that is none, or asks for what takes the token."""
    own = f"127.0.0.1:{port(stage)}"
    paths = ["/", "/state.json", "/jobs/sums-1/cancel", "/jobs/..%2f..%2fserve.json/losses.json", "/../serve.json"]
    target = chance.choice(
        [*paths, "/jobs/%00/losses.json", "/token", "/" + "a" * 70_000, "/jobs/" + "%2e%2e/" * 50, "*"]
    )
    method = chance.choice(["GET", "POST", "PUT", "TRACE", "G\x00T", "X" * 9000, ""])
    host = chance.choice([own, own, "evil.example", "", "127.0.0.1\r\nX: y"])
    headers = [
        "Authorization: Bearer wrong",
        "Authorization: \xff\xfe",
        "Content-Length: 99999999999",
        "X: " + "y" * 70_000,
    ]
    token = chance.choice(
        ["", *(f"{one}\r\n" for one in (*headers, "Transfer-Encoding: chunked", "Upgrade: websocket"))]
    )
    said = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{token}\r\n".encode("latin-1")
    if chance.random() < 0.3:
        said = chance.randbytes(500)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port(stage)), 5) as connection:
        connection.settimeout(0.3)
        connection.sendall(said)
        stage.heard.append(connection.recv(65536))


def page_flood(stage: Stage, chance: random.Random) -> None:
    """More connections than serve may have descriptors, idle or in the midst of a request."""
    open_connections(stage, IDLE if chance.random() < 0.5 else HALF_OPEN, half=chance.random() < 0.5)


def open_connections(stage: Stage, count: int, *, half: bool) -> None:
    """Holds connections for two seconds, in which the queue must go on."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            try:
                connection = socket.create_connection(("127.0.0.1", port(stage)), 1)
                stack.enter_context(connection)
                if half:
                    connection.sendall(b"GET /state.json HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            except OSError:  # it lets nobody in for a moment
                time.sleep(0.01)
        time.sleep(2)


def look(stage: Stage, chance: random.Random) -> None:
    """Everything of the queue that can be listed, which must tell nothing of others."""
    for arguments in ([], ["--json"], [chance.choice(list(stage.jobs()) or ["sums-1"])]):
        stage.heard.append(stage.listed(stage.mallory, arguments).encode())


def port(stage: Stage) -> int:
    """Port of the page."""
    return int(stage.page["url"].rpartition(":")[2])
