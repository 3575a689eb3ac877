"""Which configurations a task tries."""
