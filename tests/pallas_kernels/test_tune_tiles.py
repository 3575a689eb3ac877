"""The search for tiles: what it tries, what it believes, what it keeps when it is stopped."""

import json

import jax
import jax.numpy as jnp
import pytest
from gpu_interpreter import simulated_gpu
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.mosaic_gpu.tile_problems import GemmProblem, SumProblem
from pallas_kernels.mosaic_gpu.tile_table import read_table
from pallas_kernels.mosaic_gpu.tiles import usual_gemm_tiles, usual_sum_tiles

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


@pytest.fixture
def h100():
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
        yield


@pytest.fixture
def tuner(script, monkeypatch):
    """The script, on a machine that passes for one with a Hopper GPU."""
    monkeypatch.setitem(IMPLEMENTATIONS, "mosaic_gpu", IMPLEMENTATIONS["mosaic_gpu"]._replace(device=lambda: []))
    return script("tune_tiles")


@pytest.mark.parametrize("rank", [16, 32, 64, 128])
@pytest.mark.parametrize("sizes", [(16384, 2048, 8192), (384, 576, 192), (256, 64, 128)], ids=str)
def test_candidates_are_the_usual_tiles_and_others_that_fit(h100, sizes, rank):
    m, k, n = sizes
    for kind in ("with_h", "with_h_transposed", "given_h", "given_h_transposed"):
        problem = GemmProblem(kind, m, k, n, rank)
        usual, *others = problem.candidates()
        assert usual == usual_gemm_tiles(m, n, k, rank, makes_h=problem.makes_h)
        assert len({usual, *others}) == 1 + len(others) > 4
        assert all(one.fits(m, n, k, rank, makes_h=problem.makes_h) for one in (usual, *others))
    for together in (1, 2, 3):
        problem = SumProblem(m, k, together, rank)
        usual, *others = problem.candidates()
        assert usual == usual_sum_tiles(k, problem.h_width)
        assert len({usual, *others}) == 1 + len(others)
        assert all(one.fits(k, problem.h_width) for one in (usual, *others))


@pytest.mark.parametrize(
    "problem",
    [
        GemmProblem("with_h", 16384, 2048, 8192, 16),
        GemmProblem("with_h_transposed", 1536, 192, 576, 64),
        GemmProblem("given_h", 1536, 576, 192, 16),
        GemmProblem("given_h_transposed", 16384, 8192, 2048, 32),
        SumProblem(16384, 2048, 3, 16),
        SumProblem(1536, 576, 1, 64),
    ],
    ids=str,
)
def test_every_candidate_lowers_for_an_h100(h100, problem):
    for tiles in problem.candidates()[:4]:
        kernel = jax.jit(problem.kernel(tiles, 8))
        lowered = kernel.trace(*problem.operands(8, jax.ShapeDtypeStruct)).lower(lowering_platforms=("cuda",))
        assert "mosaic_gpu" in lowered.as_text()


def test_it_measures_records_and_goes_on_where_it_stopped(tuner, called, tmp_path, capsys):
    flags = ["--shapes", "128x64x64", "--slots", "1", "--candidates", "2", "--copies", "1", "--repeats", "1"]
    flags += ["--together", "1", "--folder", str(tmp_path)]
    with simulated_gpu(1):
        assert called(tuner, *flags, "--kinds", "with_h") == 0
        assert "1 of 1 problems" in capsys.readouterr().out
        assert called(tuner, *flags, "--kinds", "with_h,given_h_transposed,sums") == 0
    out = capsys.readouterr().out
    assert "2 of 3 problems" in out
    assert len([line for line in out.splitlines() if line.endswith("<-")]) == 2
    (path,) = tmp_path.iterdir()
    table = read_table(tmp_path, json.loads(path.read_text())["device"])
    assert [one.problem[0] for one in table["gemm"]] == ["given_h_transposed", "with_h"]
    assert [(one.m, one.problem) for one in table["sums"]] == [(128, (64, 64))]


def unwritten(outputs):
    return [one.at[0].set(jnp.nan) for one in outputs]


def refused(outputs):
    raise RuntimeError("no such tiles\nand more")


@pytest.mark.parametrize(
    ("does", "message"),
    [(unwritten, "differs from the usual tiles' result by inf"), (refused, ", width 8: no such tiles\n")],
)
def test_a_candidate_that_fails_or_has_another_result_is_left_out(tuner, monkeypatch, capsys, does, message):
    problem = GemmProblem("given_h", 128, 64, 128, 16)
    real = GemmProblem.kernel

    def kernel(self, tiles, slots):
        if tiles == self.candidates()[0]:
            return real(self, tiles, slots)
        return lambda *operands: does(real(self, tiles, slots)(*operands))

    monkeypatch.setattr(GemmProblem, "kernel", kernel)
    options = tuner.parse(["--slots", "1", "--candidates", "2", "--copies", "1", "--repeats", "1"])
    with simulated_gpu(1):
        times = tuner.measure(problem, options, float("inf"))
        assert list(times) == problem.candidates()[:1]
    assert message in capsys.readouterr().err


def test_what_was_measured_is_kept_when_it_is_interrupted_or_out_of_time(
    tuner, h100, called, monkeypatch, tmp_path, capsys
):
    measured = []

    def measure(problem, options, deadline):
        if len(measured) % 3 == 2:
            measured.append(None)
            raise KeyboardInterrupt if len(measured) == 3 else tuner.OutOfTime
        measured.append(problem)
        return {problem.candidates()[0]: 1.0}

    monkeypatch.setattr(tuner, "measure", measure)
    flags = ["--kinds", "with_h", "--ranks", "16,32,64", "--shapes", "128x64x64,128x64x128", "--folder", str(tmp_path)]
    assert [called(tuner, *flags), called(tuner, *flags), called(tuner, *flags)] == [130, 0, 0]
    out, err = capsys.readouterr()
    assert err == "tune_tiles: stopped; the same command resumes\n"
    assert "time is up, 2 problems left" in out
    done = [one.key for one in measured if one is not None]
    assert len(done) == len(set(done)) == 6
    assert {(one.m, one.problem) for one in read_table(tmp_path, H100.device_kind)["gemm"]} == set(done)


def test_a_problem_that_cannot_be_measured_fails_and_the_others_go_on(tuner, h100, called, monkeypatch, tmp_path):
    def measure(problem, *_):
        return {} if problem.rank == 32 else {problem.candidates()[0]: 1.0}

    monkeypatch.setattr(tuner, "measure", measure)
    flags = ["--kinds", "with_h", "--ranks", "16,32,64", "--shapes", "128x64x64", "--folder", str(tmp_path)]
    assert called(tuner, *flags) == 1
    assert [one.problem[-1] for one in read_table(tmp_path, H100.device_kind)["gemm"]] == [16, 64]


def test_the_usual_tiles_win_unless_another_is_two_percent_faster(tuner):
    assert tuner.winner({"usual": 1.0, "a": 0.985, "b": 1.1}) == "usual"
    assert tuner.winner({"usual": 1.0, "a": 0.975, "b": 0.97}) == "b"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "100x64x64"], "given '100x64x64', expected tokens to be a multiple of 128"),
        (["--shapes", "128x64"], "given '128x64', expected tokens x k x n such as"),
        (["--ranks", "8"], "given '8', expected any of 16, 32, 64, 128"),
        (["--kinds", "wit_h"], "(did you mean 'with_h'?)"),
        (["--seconds", "soon"], "given 'soon', expected a whole number of at least 1"),
        (["--candidate", "3"], "unknown option '--candidate' (did you mean '--candidates'?)"),
        (["--folder", "/proc/here"], "/proc/here: no folder can be made there"),
    ],
)
def test_a_wrong_flag_is_one_line(tuner, h100, called, capsys, flags, message):
    assert called(tuner, *flags) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tune_tiles: error: ") and message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_table_that_is_wrong_is_one_line_and_not_written_over(tuner, h100, called, tmp_path, capsys):
    path = tmp_path / "nvidia-h100-80gb-hbm3.json"
    path.write_text("{")
    assert called(tuner, "--folder", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"tune_tiles: error: {path}: ")
    assert path.read_text() == "{"


def test_a_machine_without_a_hopper_gpu_is_told_so(script, called, capsys):
    assert called(script("tune_tiles")) == 2
    assert capsys.readouterr().err == (
        "tune_tiles: error: this is a CPU, expected a Hopper GPU (compute capability 9.0)\n"
    )
