"""The page's routes, and who may use them.

Reading is open to whoever reaches the loopback address, but for what the feed holds back. What changes the queue takes
the token in a header, which no form and no foreign page can send; a foreign name that leads to this address (DNS
rebinding) is refused by its ``Host``, a foreign page by its ``Origin``.
"""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from altojax.cluster.service.page.feed import Body, Feed, NeedsToken
from altojax.cluster.service.queue.client import Wish
from jaxrun.plots.pages import STYLE, render
from jaxrun.process.errors import UserError, nearest

HOSTS = ("127.0.0.1", "localhost")
"""Names of this page; their port is free, so that a tunnel may end at another one."""

_WISHES: tuple[Wish, ...] = get_args(Wish)
_STATIC = Path(__file__).with_name("static")
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

Ask = Callable[[str, Wish], None]
"""Puts a wish (cancel, pause, resume) for a task into the queue; raises UserError where it cannot be."""


def make_app(feed: Feed, reading: Executor, ask: Ask, token: str) -> Starlette:
    """Returns the page as an ASGI application.

    Args:
        feed: What readers are answered from.
        reading: The one thread that may use it.
        ask: Takes a task's name and a wish; called in threads of its own.
        token: Who sends it may see everything and change the queue.
    """
    page = _Page(feed, reading, ask, token)
    return Starlette(
        routes=[
            Route("/state.json", page.state),
            Route("/jobs/{job}/losses.json", page.losses),
            Route("/jobs/{job}/{wish:str}", page.change, methods=["POST"]),
            Route("/token", page.check, methods=["POST"]),
            Route("/", page.shell),
            Route("/page.css", _style),
            Mount("/", StaticFiles(directory=_STATIC)),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        ],
        exception_handlers={UserError: _unreadable, HTTPException: _refused},
    )


class _Page:
    """The handlers."""

    def __init__(self, feed: Feed, reading: Executor, ask: Ask, token: str) -> None:
        self._feed = feed
        self._reading = reading
        self._ask = ask
        self._token = token.encode()
        self._shell = render("altojax.cluster.service.page", "queue.html.j2")

    async def shell(self, request: Request) -> Response:
        return HTMLResponse(self._shell)

    async def state(self, request: Request) -> Response:
        body, now_s = await self._read(partial(self._feed.state, trusted=self._knows_token(request)))
        response = _unless_known(request, body)
        response.headers["queue-now"] = f"{now_s:.3f}"
        return response

    async def losses(self, request: Request) -> Response:
        name = request.path_params["job"]
        try:
            body = await self._read(partial(self._feed.losses, name, trusted=self._knows_token(request)))
        except NeedsToken:
            raise _no_token() from None
        if body is None:
            raise HTTPException(404, f"no task '{name}' in this queue")
        return _unless_known(request, body)

    async def change(self, request: Request) -> Response:
        self._check_sender(request)
        job, given = request.path_params["job"], request.path_params["wish"]
        wish = next((one for one in _WISHES if one == given), None)
        if wish is None:
            raise HTTPException(
                404, f"no wish '{given}'{nearest(given, _WISHES)}, expected one of {', '.join(_WISHES)}"
            )
        try:
            await run_in_threadpool(self._ask, job, wish)
        except UserError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse({"job": job, "asked": wish}, status_code=202)

    async def check(self, request: Request) -> Response:
        self._check_sender(request)
        return Response(status_code=204)

    async def _read[Answer](self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._reading, call)

    def _check_sender(self, request: Request) -> None:
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers['host']}"
        if origin is not None and origin != own:
            raise HTTPException(403, f"asked by a page of {origin}, expected one of {own}")
        if not self._knows_token(request):
            raise _no_token()

    def _knows_token(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._token)


class _Headers:
    """Adds to every answer what keeps the page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_more)


def _no_token() -> HTTPException:
    told = "expected the token of the queue's serve.json, as 'Authorization: Bearer TOKEN'"
    return HTTPException(401, told, {"www-authenticate": "Bearer"})


def _unless_known(request: Request, body: Body) -> Response:
    if request.headers.get("if-none-match") == body.tag:
        return Response(status_code=304, headers={"etag": body.tag})
    headers = {"etag": body.tag, "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(body.packed, media_type="application/json", headers={**headers, "content-encoding": "gzip"})
    return Response(body.content, media_type="application/json", headers=headers)


async def _style(request: Request) -> Response:
    return FileResponse(STYLE)


async def _unreadable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
