"""Tickets: sampled, scored, mixed, exported."""
