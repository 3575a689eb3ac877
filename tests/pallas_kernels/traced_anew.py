"""Adapter products that are traced at every call, for devices that are simulated one after the other."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from pallas_kernels import products


@contextlib.contextmanager
def traced_anew() -> Iterator[None]:
    """Keeps no trace of the products' kernels, which would be those of the device before."""
    with (
        mock.patch.object(products, "_forward", products._forward.__wrapped__),
        mock.patch.object(products, "_backward", products._backward.__wrapped__),
    ):
        yield
