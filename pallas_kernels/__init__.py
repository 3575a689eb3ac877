"""JAX-only kernels: the adapter GEMM and its kin, with an XLA reference beside every kernel."""
