"""The XLA implementation against what every implementation must do; `test_lora_matmul` has its arithmetic."""

import contextlib

from kernel_suite import KernelSuite


class TestXLA(KernelSuite):
    implementation = "xla"

    @staticmethod
    def simulated(multiprocessors):
        return contextlib.nullcontext(multiprocessors)
