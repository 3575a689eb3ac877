"""JAX-only kernels: the adapter GEMM and its kin, with an XLA reference beside every kernel."""

from pallas_kernels.api import choose, fitting, lora_matmul, lora_matmuls
from pallas_kernels.dropout import Dropout, from_feature, token_keys
from pallas_kernels.xla import PRODUCT

__all__ = ["PRODUCT", "Dropout", "choose", "fitting", "from_feature", "lora_matmul", "lora_matmuls", "token_keys"]
