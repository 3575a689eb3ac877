"""Rows of files and hub data sets, and the formats of their columns."""
