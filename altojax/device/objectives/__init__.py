"""What trials minimize: cross-entropy of completions, and losses of preference pairs."""
