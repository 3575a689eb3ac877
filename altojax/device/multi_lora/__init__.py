"""Stacked adapters: every adapted matrix of the frozen base holds one a slot, and a token finds its own."""
