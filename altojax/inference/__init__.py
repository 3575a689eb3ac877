"""Verbs that use a model: evaluate, generate, export, show."""
