"""What trials minimize: cross-entropy of completions, losses of preference pairs and of answers alone."""
