"""Stored forms of frozen matrices in few bits: how each is packed, read from checkpoints and made dense."""
