"""A crowd of connections costs nobody the page, and never the process its descriptors."""

import http.client
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from altojax.cluster.service.page import connections
from altojax.cluster.service.page.connections import most_connections
from altojax.cluster.service.page.server import _BACKLOG, served

CROWD = 150


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(connections, "MOST", 20)

    async def hello(request):
        return PlainTextResponse("hello")

    with served(Starlette(routes=[Route("/", hello)]), 0) as url:
        yield url.removeprefix("http://")


def asks(address: str) -> bytes:
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: 127.0", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n"])
def test_a_crowd_that_says_nothing_or_half_of_it_locks_nobody_out(page, said):
    host, _, port = page.partition(":")
    before = descriptors()
    with ExitStack() as stack:
        for _ in range(CROWD):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            one.sendall(said)
        assert asks(page) == b"hello"
        assert descriptors() - before <= CROWD + connections.MOST + 2 * _BACKLOG
        assert asks(page) == b"hello"
    assert asks(page) == b"hello"


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / "])
def test_who_does_not_finish_asking_is_let_go(page, monkeypatch, said):
    monkeypatch.setattr(connections, "REQUEST_S", 0.2)
    host, _, port = page.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(said)
        try:
            while one.recv(4096):
                pass
        except ConnectionResetError:
            pass


def test_a_connection_is_kept_between_two_requests(page):
    with closing(http.client.HTTPConnection(page, timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
            own = connection.sock
        assert connection.sock is own is not None


def test_connections_leave_the_process_most_of_its_descriptors(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, 4096))
    assert most_connections() == 64
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1_048_576, 1_048_576))
    assert most_connections() == connections.MOST
