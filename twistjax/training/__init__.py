"""Subnetwork training: units, rounds, local steps, gather and scatter."""
