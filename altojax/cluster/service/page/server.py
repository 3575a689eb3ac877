"""The page's thread: a web server on loopback beside the orchestrator, which never waits for it."""

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from altojax.cluster.service.page.app import make_app
from altojax.cluster.service.page.connections import BoundedProtocol
from altojax.cluster.service.page.feed import Feed, Files, as_who_serves
from altojax.cluster.service.queue.client import OperatorClient, Wish
from altojax.cluster.service.queue.queue_view import Reader
from altojax.cluster.tenancy.members import user_name
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError

ADDRESS_NAME = "serve.json"
"""In the queue's folder: where the page is and its token, for who may read the file: the user who serves."""

_HOST = "127.0.0.1"
_BACKLOG = 16
"""Connections that may wait to be taken: as many are taken in one go, so these come on top of the bound."""
_CLOSE_S = 5.0


@dataclass(frozen=True)
class Address:
    """The address of the page.

    Attributes:
        url: To open.
        token: What changes the queue over HTTP.
    """

    url: str
    token: str

    @property
    def link(self) -> str:
        """To open with the token in hand; a browser sends no part of an address that follows a ``#``."""
        return f"{self.url}/#token={self.token}"


@contextlib.contextmanager
def serve_page(folder: Path, port: int, *, private: bool, files: Files = as_who_serves) -> Iterator[Address]:
    """Serves the page of a queue from a thread while the block runs.

    Args:
        folder: The queue's folder.
        port: On 127.0.0.1; 0 is any that is free.
        private: Whether tenants are for certain users; then notes and losses need the token, too.
        files: Touches the run of a task of a user, by number, in a block.

    Raises:
        UserError: The port is taken or not allowed, or the folder cannot be written.
    """
    token = secrets.token_urlsafe(32)
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="page-reader") as reading,
        _opened(folder, reading, private, files) as feed,
        served(make_app(feed, reading, partial(_ask, folder), token), port) as url,
        _told(folder / ADDRESS_NAME, address := Address(url, token)),
    ):
        yield address


@contextlib.contextmanager
def served(app: Starlette, port: int) -> Iterator[str]:
    """Serves an application on 127.0.0.1 from a thread while the block runs; yields its address.

    Raises:
        UserError: The port is taken or not allowed.
    """
    with contextlib.closing(_listen(port)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
        thread.start()
        try:
            yield f"http://{_HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_CLOSE_S)


def check_port(port: int) -> None:
    """Refuses a port that `served` could not take.

    Raises:
        UserError: It is taken or not allowed.
    """
    _listen(port).close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # Without it, a port whose last connections are still winding up could not be taken again for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"port={port}: {error.strerror}, expected a free port of {_HOST}, or 0 for any") from error
    return listener


@contextlib.contextmanager
def _told(file: Path, address: Address) -> Iterator[None]:
    text = json.dumps({"url": address.url, "token": address.token, "link": address.link, "pid": os.getpid()})
    write_atomic(file, text, mode=0o600)
    try:
        yield
    finally:
        # A successor may have put its own there.
        with contextlib.suppress(FileNotFoundError):
            if file.read_text(encoding="utf-8") == text:
                file.unlink()


@contextlib.contextmanager
def _opened(folder: Path, reading: Executor, private: bool, files: Files) -> Iterator[Feed]:
    reader = reading.submit(Reader, folder).result()
    try:
        yield Feed(reader, user_name(os.getuid()), private=private, files=files)
    finally:
        reading.submit(reader.close).result()


def _ask(folder: Path, job: str, wish: Wish) -> None:
    OperatorClient(folder).ask(job, wish, patience_s=0.0)
