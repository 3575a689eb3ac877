"""Meshes, hosts, collectives, and the memory of machines and programs."""
