"""Verbs of the queue: serve, submit, queue, cancel, pause, resume."""
