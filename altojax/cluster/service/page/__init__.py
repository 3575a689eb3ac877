"""The page that `altojax serve` shows: read-only, on loopback; changing anything over HTTP takes its token."""

from altojax.cluster.service.page.server import ADDRESS_NAME, Address, serve_page

__all__ = ["ADDRESS_NAME", "Address", "serve_page"]
