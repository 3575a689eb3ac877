"""Tables of measured tiles: what is looked up, what is ignored, what is refused, what is written."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import Dropout, lora_matmul
from pallas_kernels.mosaic_gpu import lora, tile_table
from pallas_kernels.mosaic_gpu.tile_table import gemm_tiles, read_table, sum_tiles, table_of, with_entry, written
from pallas_kernels.mosaic_gpu.tiles import usual_gemm_tiles, usual_sum_tiles

DEVICE = "NVIDIA H100 80GB HBM3"
H100 = AbstractDevice(device_kind=DEVICE, num_cores=132, platform="gpu")
GEMM = {
    "kind": "with_h", "m": 16384, "k": 2048, "n": 8192, "rank": 16,
    "tiles": {"tile_n": 128, "stages": 5, "cluster": 1, "out_n": 32, "out_buffers": 2, "minor": 0, "width": 4},
    "ms": 0.2, "usual_ms": 0.25,
}  # fmt: skip
SUM = {"m": 16384, "columns": 2048, "h_width": 64, "tiles": {"columns": 128, "stages": 4}, "ms": 0.1, "usual_ms": 0.1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of tables, with an H100 to trace for."""
    monkeypatch.setattr(tile_table, "TABLES", tmp_path)
    table_of.cache_clear()
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
        yield tmp_path
    table_of.cache_clear()


def write(folder, gemm=(), sums=(), **other):
    table = {"device": DEVICE, "gemm": list(gemm), "sums": list(sums), **other}
    (folder / "nvidia-h100-80gb-hbm3.json").write_text(json.dumps(table))


def changed(entry, tiles=None, **other):
    return {**entry, **other, "tiles": {**entry["tiles"], **(tiles or {})}}


def test_the_package_has_a_folder_for_tables_and_an_unknown_device_gets_the_usual_tiles():
    assert tile_table.TABLES.is_dir()
    unknown = AbstractDevice(device_kind="a device that nobody measured", num_cores=100, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=unknown)):
        assert gemm_tiles(256, 128, 64, 16, makes_h=True) == usual_gemm_tiles(256, 128, 64, 16, makes_h=True)
        assert sum_tiles(128, 64, m=256) == usual_sum_tiles(128, 64)


def test_every_table_that_is_shipped_can_be_read():
    for path in tile_table.TABLES.iterdir():
        if path.name.endswith(".json"):
            table = read_table(tile_table.TABLES, json.loads(path.read_text())["device"])
            assert table["gemm"] or table["sums"]


def test_a_measured_problem_gets_its_tiles_and_every_other_one_the_usual_ones(folder):
    write(folder, [GEMM], [SUM])
    assert gemm_tiles(16384, 8192, 2048, 16, makes_h=True)._asdict() == {**GEMM["tiles"], "sms": 132}
    assert sum_tiles(2048, 64, m=16384)._asdict() == {**SUM["tiles"], "sms": 132}
    others = [
        ((16384, 2048, 8192, 16), {"makes_h": True}),
        ((16384, 8192, 2048, 32), {"makes_h": True}),
        ((16384, 8192, 2048, 16), {"makes_h": False}),
        ((16384, 8192, 2048, 16), {"makes_h": True, "transpose_w": True}),
    ]
    for sizes, kind in others:
        assert gemm_tiles(*sizes, **kind) == usual_gemm_tiles(*sizes, makes_h=kind["makes_h"])
    assert sum_tiles(2048, 128, m=16384) == usual_sum_tiles(2048, 128)
    assert sum_tiles(4096, 64, m=16384) == usual_sum_tiles(4096, 64)


def test_of_several_numbers_of_rows_the_nearest_in_ratio_counts(folder):
    write(
        folder,
        [changed(GEMM, {"width": 1}, m=1024), changed(GEMM, {"width": 2}, m=8192)],
        [changed(SUM, {"stages": 2}, m=1024), changed(SUM, {"stages": 3}, m=8192)],
    )
    for m, width in ((128, 1), (1024, 1), (2816, 1), (3072, 2), (8192, 2), (65536, 2)):
        assert gemm_tiles(m, 8192, 2048, 16, makes_h=True).width == width
        assert sum_tiles(2048, 64, m=m).stages == width + 1


@pytest.mark.parametrize(
    ("entry", "m"),
    [
        pytest.param(changed(GEMM, {"cluster": 2}), 16512, id="a cluster of two over an odd number of row tiles"),
        pytest.param(changed(GEMM, {"tile_n": 192}), 16384, id="tiles that do not divide n"),
        pytest.param(changed(GEMM, {"out_n": 256}), 16384, id="stores wider than a tile"),
        pytest.param(changed(GEMM, kind="given_h", rank=64), 16384, id="stores of half a swizzled row of U"),
        pytest.param(changed(GEMM, {"stages": 1}), 16384, id="one stage"),
        pytest.param(changed(GEMM, {"stages": 7}), 16384, id="more than shared memory holds"),
        pytest.param(changed(GEMM, {"out_buffers": 30}), 16384, id="store buffers that fill shared memory"),
        pytest.param(changed(GEMM, {"stages": 3}, k=128), 16384, id="more stages than steps"),
    ],
)
def test_an_entry_that_does_not_fit_gives_way_to_the_usual_tiles(folder, entry, m):
    write(folder, [entry])
    sizes, kind = (m, entry["n"], entry["k"], entry["rank"]), {"makes_h": entry["kind"] == "with_h"}
    assert gemm_tiles(*sizes, **kind) == usual_gemm_tiles(*sizes, **kind)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(changed(SUM, {"stages": 1}), id="one stage"),
        pytest.param(changed(SUM, {"stages": 10}), id="more than shared memory holds"),
        pytest.param(changed(SUM, {"columns": 256, "stages": 2}, h_width=256), id="more sums than registers"),
        pytest.param(changed(SUM, {"columns": 256}, columns=192), id="a warpgroup's columns half outside"),
    ],
)
def test_a_sums_entry_that_does_not_fit_gives_way_to_the_usual_tiles(folder, entry):
    write(folder, sums=[entry])
    problem = (entry["columns"], entry["h_width"])
    assert sum_tiles(*problem, m=16384) == usual_sum_tiles(*problem)


def test_a_table_is_read_once(folder):
    write(folder, [GEMM])
    before = gemm_tiles(16384, 8192, 2048, 16, makes_h=True)
    (folder / "nvidia-h100-80gb-hbm3.json").unlink()
    assert gemm_tiles(16384, 8192, 2048, 16, makes_h=True) == before
    assert before.tile_n == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"device": ', r"Expecting value: line 1 column 12"),
        ("[1]", "list indices must be integers"),
        ("\ud800", "codec can't decode"),
        ({"device": "NVIDIA A100"}, "holds device of 'NVIDIA A100'; expected a table of tiles of 'NVIDIA H100"),
        ({}, "'device'"),
        ({"device": DEVICE, "gem": []}, "holds device, gem of"),
        ({"device": DEVICE, "gemm": [changed(GEMM, {"tiles_n": 100})]}, "gemm has an entry of other fields"),
        ({"device": DEVICE, "gemm": [changed(GEMM, {"stages": "4"})]}, "gemm has an entry of other numbers"),
        ({"device": DEVICE, "gemm": [changed(GEMM, m=0)]}, "gemm has an entry of other numbers"),
        ({"device": DEVICE, "sums": [changed(SUM, h_width=64.0)]}, "sums has an entry of other numbers"),
        ({"device": DEVICE, "sums": [changed(SUM, ms=float("nan"))]}, "sums has an entry without times"),
        ({"device": DEVICE, "sums": [SUM, changed(SUM, {"stages": 2})]}, "sums has m = 16384, .* twice"),
    ],
)
def test_a_table_that_is_wrong_gives_one_line(folder, text, message):
    path = folder / "nvidia-h100-80gb-hbm3.json"
    path.write_bytes((text if isinstance(text, str) else json.dumps(text)).encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=message) as caught:
        gemm_tiles(16384, 8192, 2048, 16, makes_h=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_entry_takes_its_own_place_and_leaves_the_others_and_a_written_table_reads_back(folder):
    write(folder, [GEMM, changed(GEMM, m=1024)], [SUM])
    table = read_table(folder, DEVICE)
    mine, other = table["gemm"]
    faster = mine._replace(tiles={**mine.tiles, "width": 16}, ms=0.1)
    after = with_entry(table, "gemm", faster)
    assert after == {"gemm": (other, faster), "sums": table["sums"]}
    (folder / "nvidia-h100-80gb-hbm3.json").write_text(written(after, DEVICE))
    assert read_table(folder, DEVICE) == after
    assert gemm_tiles(16384, 8192, 2048, 16, makes_h=True).width == 16


@pytest.mark.parametrize("drops", [False, True], ids=["no dropout", "dropout"])
def test_products_and_their_gradients_take_the_entries_of_their_kind(folder, monkeypatch, drops):
    m, k, n = 512, 256, 128
    kinds = ("given_h", "given_h_transposed") if drops else ("with_h", "with_h_transposed")
    choice = {"stages": 2, "tile_n": 64}
    ends = ((k, n), (n, k))
    gemms = [
        changed(GEMM, {**choice, "width": 20 + at}, kind=kind, m=m, k=ends[at][0], n=ends[at][1])
        for at, kind in enumerate(kinds)
    ]
    write(folder, gemms, [changed(SUM, {"stages": 2 + at}, m=m, columns=c) for at, c in enumerate((n, k))])
    widths, stages = [], []

    def spied(name, seen):
        real = getattr(lora, name)

        def spy(*operands, tiles, **rest):
            seen.append(tiles)
            return real(*operands, tiles=tiles, **rest)

        monkeypatch.setattr(lora, name, spy)

    spied("adapter_gemm", widths)
    spied("slot_sums", stages)

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    def both(x, w, a, b, scale, slots, dropout, dy):
        kind = {"dropout": dropout, "implementation": "mosaic_gpu"}
        return jax.vjp(lambda x, a, b: lora_matmul(x, w, a, b, scale, slots, **kind), x, a, b)[1](dy)

    half = jnp.bfloat16
    dropout = Dropout(like(2), like(m, dtype=jnp.uint32)) if drops else None
    operands = like(m, k, dtype=half), like(k, n, dtype=half), like(2, k, 8), like(2, 8, n), like(2)
    jax.eval_shape(both, *operands, like(4, dtype=jnp.int32), dropout, like(m, n, dtype=half))
    assert [(one.tile_n, one.width) for one in widths] == [(64, 20), (64, 21)]
    assert sorted(one.stages for one in stages) == [2, 3]
