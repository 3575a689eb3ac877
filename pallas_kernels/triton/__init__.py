"""Kernels for NVIDIA GPUs from Ampere on, in Triton through jax-triton."""
