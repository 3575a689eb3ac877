"""Early exit: rules, presets, and when trials are compared."""
