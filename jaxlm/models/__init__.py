"""The transformer: attention, layers, head, generation."""
