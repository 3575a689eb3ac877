"""Bounds on who is connected to the page: a crowd may cost somebody a page, never the orchestrator its descriptors.

All come from this host, so a bound by address would be none. Instead there is one for all, far below what the process
may open. When it is reached, whoever has waited longest without asking for anything makes room; who asks has a few
seconds to say what, and to take the answer.
"""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0
"""Seconds from the first byte of a request, or from connecting, to the last byte of its answer."""
MOST = 256
"""Connections at a time, at most."""
_SHARE = 4
"""Part of the descriptors of the process that connections may take: one in so many."""


def most_connections() -> int:
    """Returns how many connections at a time leave the orchestrator descriptors enough."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(1, min(MOST, allowed // _SHARE))


class BoundedProtocol(H11Protocol):
    """HTTP over one connection, as uvicorn has it, within these bounds."""

    _deadline: asyncio.TimerHandle | None = None
    _connected_s = 0.0

    def connection_made(self, transport: Any) -> None:
        """Takes a connection, and makes room for it where there are too many."""
        super().connection_made(transport)
        self._connected_s = self.loop.time()
        self._begin()
        there: list[Any] = [one for one in self.connections if not one.transport.is_closing()]
        if len(there) > most_connections():
            resting = [one for one in there if one._rests]
            min(resting, key=lambda one: one._connected_s, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of a connection."""
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what was sent; with the first bytes of a request its time begins."""
        if self._deadline is None:
            self._begin()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Ends a request."""
        self._end()
        super().on_response_complete()

    @property
    def _rests(self) -> bool:
        """Whether nothing has been asked for that is not answered."""
        return self.cycle is None or self.cycle.response_complete

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
