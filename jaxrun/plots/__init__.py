"""Figures, and self-contained pages of them."""
