"""The queue on disk: store, requests, lease, permissions, and views of it."""
