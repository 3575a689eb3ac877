"""The queue of tasks and the orchestrator that serves it."""
