"""Nodes, GPUs, jobs, tasks and tenants, as the scheduler accounts for them."""
