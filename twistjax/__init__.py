"""Sparse language models by subnetwork training (TwIST, arXiv 2511.03983)."""
