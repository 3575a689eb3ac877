"""A checkpoint restores every bit, or fails in one clear line."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.files.checkpoint import load_tree, save_tree
from jaxrun.process.errors import UserError


def tree():
    return {
        "adapter": {"self_attn.q_proj/a": jax.random.normal(jax.random.key(0), (3, 4, 2))},
        "half": jnp.arange(5, dtype=jnp.bfloat16) / jnp.bfloat16(3),
        "host": [np.arange(6, dtype=np.int32).reshape(2, 3), np.float32(0.1).astype(ml_dtypes.bfloat16)],
        "step": np.int32(7),
        "nothing": {},
    }


def test_every_leaf_comes_back_bit_for_bit_and_of_its_kind(tmp_path):
    saved = tree()
    save_tree(tmp_path / "a" / "tick.1", saved)
    loaded = load_tree(tmp_path / "a" / "tick.1", saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for before, after in zip(jax.tree.leaves(saved), jax.tree.leaves(loaded), strict=True):
        assert isinstance(after, jax.Array) == isinstance(before, jax.Array)
        assert np.asarray(before).dtype == np.asarray(after).dtype
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


def test_an_abstract_tree_is_enough_and_places_what_it_loads(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()), ("adapter",))
    sharded = NamedSharding(mesh, PartitionSpec("adapter"))
    value = jnp.arange(16.0)
    save_tree(tmp_path / "c", {"x": value, "y": value})
    like = {
        "x": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharded),
        "y": jax.ShapeDtypeStruct((16,), "float32"),
    }
    loaded = load_tree(tmp_path / "c", like)
    assert loaded["x"].sharding == sharded
    assert loaded["y"].devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(loaded["x"], value)


def test_a_second_save_replaces_the_first(tmp_path):
    save_tree(tmp_path / "c", {"x": jnp.zeros(3), "gone": jnp.zeros(2)})
    save_tree(tmp_path / "c", {"x": jnp.ones(4)})
    np.testing.assert_array_equal(load_tree(tmp_path / "c", {"x": np.zeros(4, np.float32)})["x"], np.ones(4))


@pytest.mark.parametrize(
    "like",
    [{"x": np.zeros(4, np.float32)}, {"z": np.zeros(3, np.float32)}, {"x": np.zeros(3, np.float32), "y": np.zeros(1)}],
)
def test_another_shape_or_structure_is_refused(tmp_path, like):
    save_tree(tmp_path / "c", {"x": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"c: (cannot be restored|\['x'\] is float32\(3,\), expected float32\(4,\))"):
        load_tree(tmp_path / "c", like)


def test_a_missing_or_half_written_checkpoint_is_refused(tmp_path):
    like = {"x": np.zeros(300, np.float32)}
    with pytest.raises(UserError, match="no such folder"):
        load_tree(tmp_path / "none", like)
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="cannot be restored"):
        load_tree(tmp_path / "half", like)
    save_tree(tmp_path / "c", like)
    (tmp_path / "c" / "state" / "manifest.ocdbt").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be restored"):
        load_tree(tmp_path / "c", like)


def test_an_empty_array_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\] has no elements"):
        save_tree(tmp_path / "c", {"a": {"b": np.zeros((0, 3))}})


def test_a_full_disk_is_an_error_of_the_user_and_leaves_what_was_there(tmp_path):
    """With a limit on the size of files, in a process of its own."""
    script = (
        "import resource, sys, numpy as np\n"
        "from jaxlm.files.checkpoint import load_tree, save_tree\n"
        "from jaxrun.process.errors import UserError\n"
        "small, large = ({'a': np.ones(size, np.float32)} for size in (4, 2**20))\n"
        "save_tree(sys.argv[1], small)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "large['a'] = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)\n"
        "try:\n"
        "    save_tree(sys.argv[1] + '-other', large)\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "print(load_tree(sys.argv[1], small)['a'].sum())\n"
    )
    folder = tmp_path / "tree"
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reason, total = done.stdout.splitlines()
    assert reason == f"{folder}-other: file too large for this file system or limit, expected room to write"
    assert total == "4.0"
    assert not Path(f"{folder}-other").exists()
