"""The page that `altojax serve` shows: read-only, on loopback; changing anything over HTTP takes its token."""
