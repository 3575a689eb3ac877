"""Tenants' members, grants and roots: who may submit, and what tasks may read, write and run."""
