"""Memory, speed and step times predicted by formulas; no device is asked."""
