"""JAX-only kernels: the adapter GEMM and its kin, with an XLA reference beside every kernel."""

from pallas_kernels.api import choose, fitting, lora_matmul, lora_matmuls, skips_padding
from pallas_kernels.dropout import Dropout, from_feature, token_keys, token_seeds
from pallas_kernels.xla import PRODUCT

__all__ = [
    "PRODUCT",
    "Dropout",
    "__version__",
    "choose",
    "fitting",
    "from_feature",
    "lora_matmul",
    "lora_matmuls",
    "skips_padding",
    "token_keys",
    "token_seeds",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("altojax")
    raise AttributeError(f"module 'pallas_kernels' has no attribute '{name}'")
