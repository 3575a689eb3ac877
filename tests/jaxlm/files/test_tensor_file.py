"""A disk that is full as tensors are written is told in one line, and nothing half-written stays."""

import errno

import jax.numpy as jnp
import numpy as np
import pytest
from small_disk import room_of
from tiny_models import tiny

from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.tensor_file import write_tensors
from jaxrun.process.errors import UserError


def test_what_the_system_refuses_is_an_error_of_the_system(tmp_path):
    with room_of(1000), pytest.raises(OSError, match="File too large") as caught:
        write_tensors(tmp_path / "x.safetensors", {"x": np.zeros(1000, np.float32)})
    assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith("x.safetensors")


def test_a_model_without_room_is_refused_in_one_line(tmp_path):
    with room_of(10_000), pytest.raises(UserError, match="file too large for this file system or limit"):
        save_model(tmp_path / "m", random_config("llama"), tiny("llama"), dtype=jnp.float32)
    assert not list(tmp_path.iterdir())
