"""Baselines, pruning and measurements that tickets are compared with."""
