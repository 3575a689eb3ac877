"""A run takes the training step of the fewest predicted seconds, says so, and keeps it when it resumes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.estimates.step_prices import StepVariant
from altojax.run.checkpoint import plain_variant, variant_at
from altojax.run.load_base import PlacedBase, remats_from
from altojax.run.prepare import PreparedBase, kernels_of, prepare
from jaxlm.files.weights import read_model_config
from jaxlm.models.computation import Remat
from jaxrun.store.journal import Journal

CONFIGS = Path(__file__).parents[3] / "configs"
TINY, SHAPE = CONFIGS / "tiny", CONFIGS / "shapes" / "smollm2-135m"
FUSED, XLA = StepVariant(None, Remat("none", scan_layers=False)), StepVariant("xla", Remat("full", scan_layers=True))


def given_run(folder: Path, samples: int = 4, **model) -> TuneConfig:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {i}, and more words"}) + "\n" for i in range(20)))
    run = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True, **model},
        "search": {"lora_rank": [2, 4], "train_samples": samples},
        "early_exit": "none",
        "tasks": [{"name": "rows", "data": {"train": str(rows), "max_length": 32}}],
    }
    return TuneConfig.model_validate(run)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose fused kernels run, as far as choices go."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("altojax.run.prepare.choose", lambda: ("mosaic_gpu", []))


def placed(config: TuneConfig, budget: int = 2**36) -> PlacedBase:
    """The run on a device of so much memory, as if its base had the shape of 135 M parameters."""
    base = replace(prepare(config).bases[0], config=read_model_config(SHAPE, weights=False))
    return PlacedBase(config, base, None, budget, 2, 2)


def at_checkpoint(base: PreparedBase, variant: StepVariant) -> SimpleNamespace:
    held = {"trials": [trial.full_name for trial in base.trials]}
    manifest = {"held": held, "variant": plain_variant(variant)}
    return SimpleNamespace(manifest=json.loads(json.dumps(manifest)))


@pytest.mark.usefixtures("gpu")
def test_a_short_run_compiles_little_and_a_long_one_takes_the_fast_step(tmp_path):
    assert placed(given_run(tmp_path)).variant == XLA
    assert placed(given_run(tmp_path, samples=200_000_000)).variant == FUSED


@pytest.mark.usefixtures("gpu")
def test_what_a_config_says_stays_and_the_rest_is_chosen(tmp_path):
    long = {"samples": 200_000_000}
    assert placed(given_run(tmp_path, **long, kernels="xla")).variant == FUSED._replace(kernels="xla")
    # Of steps of few tokens, XLA's, which copy no weights out of their stacks.
    assert placed(given_run(tmp_path, **long, scan_layers=True)).variant == XLA
    assert placed(given_run(tmp_path, **long, remat="dots")).variant == FUSED._replace(remat=Remat("dots", False))
    assert placed(given_run(tmp_path, remat="dots")).variant == StepVariant("xla", Remat("dots", True))


@pytest.mark.usefixtures("gpu")
def test_where_memory_holds_no_batch_of_a_fast_step_a_long_run_computes_more_again(tmp_path):
    config = given_run(tmp_path, samples=200_000_000)
    none = placed(config).offer(FUSED)
    assert placed(config, budget=350 * 2**20).variant.remat == XLA.remat
    assert none.tokens > placed(config, budget=2**35).offer(FUSED).tokens > 0


def test_on_a_cpu_products_are_xlas_and_the_least_is_computed_again(tmp_path):
    config = given_run(tmp_path)
    assert kernels_of(prepare(config).bases[0].spec) == ("xla",)
    assert placed(config).variant == StepVariant("xla", Remat("none", scan_layers=True))


@pytest.mark.usefixtures("gpu")
def test_where_the_first_does_not_fit_only_what_computes_more_again_is_tried(tmp_path):
    spec = prepare(given_run(tmp_path)).bases[0].spec
    assert [one.remat for one in remats_from(spec, FUSED.remat)] == ["none", "dots", "full"]
    assert remats_from(spec, XLA.remat) == [XLA.remat]


@pytest.mark.usefixtures("gpu")
def test_a_run_that_resumes_keeps_its_step_unless_its_config_excludes_it(tmp_path):
    base = prepare(given_run(tmp_path)).bases[0]
    assert variant_at(at_checkpoint(base, FUSED), base) == FUSED != placed(given_run(tmp_path)).variant
    assert variant_at(None, base) is None
    for setting in ({"kernels": "xla"}, {"remat": "full"}, {"scan_layers": True}):
        other = prepare(given_run(tmp_path, **setting)).bases[0]
        assert variant_at(at_checkpoint(other, FUSED), other) is None
    assert variant_at(SimpleNamespace(manifest={"held": {"trials": ["another/trial-0"]}}), base) is None


@pytest.mark.slow
@pytest.mark.usefixtures("unreported")
def test_a_run_says_its_step_and_saves_it(tmp_path, capsys):
    config = given_run(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    said = []
    for verb in ("doctor", "tune"):
        assert main([verb, str(file)]) == 0
        said.append(" ".join(capsys.readouterr().out.split()))
    words = "XLA's products, layers scanned, remat none: ~16 s to compile and ~"
    assert all(words in one for one in said)
    with Journal.read(tmp_path / "run") as journal:
        checkpoint = journal.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.manifest["variant"] == {"kernels": "xla", "remat": "none", "scan_layers": True}
