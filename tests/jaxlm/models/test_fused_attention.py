"""cuDNN attention on NVIDIA GPUs by their compute capability, nowhere else, whatever a device calls itself."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxlm.models.mixers import attend
from pallas_kernels import api


@pytest.mark.parametrize(
    ("platform", "capability", "widest"),
    [
        ("gpu", "9.0", 256),
        ("gpu", "12.0", 256),
        ("gpu", "8.6", 128),
        ("gpu", "gfx942", None),
        ("gpu", None, None),
        ("cpu", None, None),
    ],
)
def test_attention_is_fused_where_a_device_can(platform, capability, widest, monkeypatch):
    device = SimpleNamespace() if capability is None else SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attend.fused_heads() == widest
    for head, fits in ((64, widest is not None), (256, widest == 256)):
        assert attend.fused_kernel_takes(jnp.zeros((1, 8, 2, head), jnp.bfloat16)) == fits


def test_an_amd_gpu_computes_adapters_by_xla_and_says_why(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability="gfx942")])
    chosen, passed_over = api.choose()
    assert chosen == "xla"
    assert len(passed_over) == 2 and all("gfx942" in reason for reason in passed_over)
