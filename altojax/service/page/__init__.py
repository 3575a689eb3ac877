"""The page that `altojax serve` shows: read-only, on loopback; changing anything over HTTP takes its token."""

from altojax.service.page.server import Address, serve_page

__all__ = ["Address", "serve_page"]
