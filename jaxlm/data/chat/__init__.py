"""Chat templates: conversations as text, and the spans of their answers."""
