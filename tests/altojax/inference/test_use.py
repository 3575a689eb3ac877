"""Runs are evaluated, prompted and exported from the command line."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter
from runs import TINY, write_finished_run

from altojax.adapters.merge import merge
from altojax.adapters.peft_files import read_adapter
from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.inference.adapted_model import BASE, AdaptedModel
from altojax.inference.evaluate import EvaluateSettings
from altojax.inference.export import ExportSettings
from altojax.inference.generate import GenerateSettings
from altojax.inference.loaded_model import load_adapted
from altojax.inference.model_source import find_source
from jaxlm.data.answers import answer_of
from jaxlm.data.dataset import load_datasets
from jaxlm.data.documents import Chat, Message
from jaxlm.data.encoding import Encoder
from jaxlm.files.hf import save_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.sampling import Sampling
from jaxrun.config.config import dump_config
from jaxrun.config.config_help import told
from jaxrun.store.journal import Journal


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_finished_run(tmp_path_factory.mktemp("use"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The run's base as a folder with weights."""
    config, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_model(folder, config, model, dtype=jnp.float32, tokenizer=load_tokenizer(TINY))
    return folder


def results_of(capsys, *words):
    assert main(["evaluate", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def merged_loss(run_dir, adapter, rows):
    """Mean loss by the plainest means: adapter merged in, full logits, one row at a time."""
    config, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
    if adapter is not None:
        merge(model, *read_adapter(adapter, config))
    total, count = 0.0, 0
    for row in rows:
        logits = logits_of(model, np.pad(row.tokens, (0, 96 - len(row.tokens)))[None])[0]
        nll = -jax.nn.log_softmax(logits[: len(row.tokens) - 1], axis=-1)[
            np.arange(len(row.tokens) - 1), row.tokens[1:]
        ]
        total += float(np.asarray(nll)[row.targets[1:]].sum())
        count += int(row.targets.sum())
    return total / count


def test_each_row_gets_the_adapter_of_its_slot(run_dir):
    config, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
    pairs = [random_adapter(config, ["q_proj"], seed=1), random_adapter(config, "all-linear", rank=7, use_rslora=True)]
    expected = []
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 9))
    for pair in (None, *pairs):
        _, alone = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
        if pair is not None:
            merge(alone, *pair)
        expected.append(logits_of(alone, tokens)[0])
    adapted = AdaptedModel(model, pairs)
    found = logits_of(adapted.model, np.repeat(tokens, 4, axis=0), adapted.routing([2, BASE, 1, 2]))
    for row, slot in enumerate([2, 0, 1, 2]):
        np.testing.assert_allclose(found[row], expected[slot], atol=2e-5)


def test_evaluate_reports_the_loss_of_base_and_best_adapter_of_a_run(run_dir, tmp_path, capsys):
    results_of(capsys, run_dir, "task=second", f"out={tmp_path / 'r.json'}")
    report = json.loads((tmp_path / "r.json").read_text())
    source = find_source(str(run_dir), task="second")
    rows = load_datasets(source.data, load_tokenizer(TINY))[1].examples
    assert [one["name"] for one in report["results"]] == ["base", "second/best"] and report["rows"] == len(rows) == 8
    for one, adapter in zip(report["results"], [None, run_dir / "second" / "best"], strict=True):
        assert one["loss"] == pytest.approx(merged_loss(run_dir, adapter, rows), abs=1e-4)
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))


def test_a_run_is_used_without_the_rules_and_the_metric_that_it_was_trained_by(run_dir, tmp_path):
    with Journal.read(run_dir) as journal:
        text = journal.config_text
    strange = "early_exit: {preset: none, of_another_package: {times: 3}}\nselect_by: of_another_package\n"
    Journal.open(tmp_path / "run", config_text=text + strange, identity="d").close()
    plain, other = (find_source(str(one), task="first", adapters=[]) for one in (run_dir, tmp_path / "run"))
    assert (other.model, other.data) == (plain.model, plain.data)


def test_evaluate_compares_adapters_on_a_file(run_dir, base, tmp_path, capsys):
    folders = f"{run_dir / 'first' / 'trial-0'},{run_dir / 'first' / 'trial-1'}"
    rows = run_dir.parent / "rows.jsonl"
    printed = results_of(capsys, base, f"data={rows}", f"adapter={folders}", f"out={tmp_path / 'r.json'}")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows"] == 16 and len({one["loss"] for one in report["results"]}) == 3
    for one in report["results"]:
        assert f"{one['loss']:.4f}" in printed and one["name"] in printed


def test_exact_match_counts_answers_that_are_the_reference(run_dir, tmp_path, capsys):
    """The reference answers are what the adapter itself says, but for one row."""
    source = find_source(str(run_dir), task="first")
    loaded = load_adapted(source)
    tokenizer = loaded.tokenizer
    prompts = [f"{a} plus {a} is" for a in range(5)]

    def encoded(prompt):
        document = Chat((Message("user", prompt), Message("assistant", "?")))
        return Encoder(tokenizer).prompt(document).tokens

    made = loaded.adapted.complete(
        [encoded(p) for p in prompts], 1, Sampling(max_new_tokens=6), eos_ids=loaded.eos_ids()
    )
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made]
    texts[2] += "!"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": p, "completion": t or " "}) + "\n" for p, t in zip(prompts, texts, strict=True))
    )
    words = (f"data={rows}", "exact_match=true", "max_new_tokens=6", f"predictions={tmp_path / 'p.jsonl'}")
    results_of(capsys, run_dir, "task=first", f"out={tmp_path / 'r.json'}", *words)
    base, best = json.loads((tmp_path / "r.json").read_text())["results"]
    assert best["exact match"] == pytest.approx(4 / 5) and base["exact match"] < 4 / 5
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["match"] for line in lines if line["name"] == "first/best"] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        (" 42 \n", None, "42"),
        ("so #### 12\nand #### 13 ", "#### (.*)", "13"),
        ("no number", r"\d+", ""),
        ("1 2 3", r"\d", "3"),
    ],
)
def test_answers_are_compared_by_their_last_match(text, pattern, answer):
    assert answer_of(text, pattern) == answer


def test_generate_is_greedy_and_repeatable_and_uses_the_adapter(run_dir, capsys):
    def said(*words):
        assert main(["generate", str(run_dir), "prompt=2: {plus} 2", "max_new_tokens=12", *words]) == 0
        return capsys.readouterr().out

    first = said("task=first")
    assert first == said("task=first") != said("task=second") and first == said("task=first", "trial=trial-0")


def test_generate_draws_by_seed(run_dir, capsys):
    def said(*words):
        common = ("task=first", "prompt=a", "max_new_tokens=12", "temperature=1.5", "top_p=0.95", "samples=2")
        assert main(["generate", str(run_dir), *common, *words]) == 0
        return capsys.readouterr().out

    assert said("seed=1") == said("seed=1") != said("seed=2")
    one, other = said("seed=1").split("\n---\n")
    assert one.strip() != other.strip()


def test_an_exported_adapter_is_the_runs_own(run_dir, tmp_path, capsys):
    assert main(["export", str(run_dir), "task=first", "trial=trial-1", f"out={tmp_path / 'deep' / 'a'}"]) == 0
    origin = run_dir / "first" / "trial-1"
    for file in origin.iterdir():
        assert (tmp_path / "deep" / "a" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_export_is_a_plain_model_with_the_adapters_logits(run_dir, tmp_path, dtype):
    out = tmp_path / "merged"
    words = ("task=first", "kind=merged", f"dtype={dtype}", "max_shard_size=100KB", f"out={out}")
    assert main(["export", str(run_dir), *words]) == 0
    assert len(list(out.glob("*.safetensors"))) > 1 and (out / "tokenizer.json").is_file()
    config, merged = load_model(out, dtype=jnp.float32)
    loaded = load_adapted(find_source(str(run_dir), task="first"))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (1, 8))
    expected = logits_of(loaded.adapted.model, tokens, loaded.adapted.routing([1]))
    moved = np.abs(logits_of(merged, tokens) - expected).max() / np.abs(expected).max()
    assert moved < (1e-5 if dtype == "float32" else 2e-2)


def test_export_does_not_replace_what_it_did_not_write(run_dir, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    words = ("export", run_dir, "task=first", f"out={tmp_path / 'mine'}")
    assert "overwrite=true" in refused(capsys, *words)
    assert "not replaced" in refused(capsys, *words, "overwrite=true")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_export_again_needs_overwrite(run_dir, tmp_path, capsys):
    words = ("export", str(run_dir), "task=first", f"out={tmp_path / 'a'}")
    assert main(list(words)) == 0
    assert "overwrite" in refused(capsys, *words)
    assert main([*words, "overwrite=true"]) == 0
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert "a: holds notes.txt, which no export wrote" in refused(capsys, *words, "overwrite=true")


def test_export_follows_no_link_out_of_an_adapter(run_dir, tmp_path, capsys):
    (tmp_path / "secret").write_text("secret")
    shutil.copytree(run_dir / "first" / "best", tmp_path / "adapter")
    words = ("export", run_dir, "task=first", f"adapter={tmp_path / 'adapter'}")
    assert "lies inside the adapter's own folder" in refused(capsys, *words, f"out={tmp_path / 'adapter' / 'a'}")
    (tmp_path / "adapter" / "merges.txt").symlink_to(tmp_path / "secret")
    assert "merges.txt: is a link, expected files and folders alone" in refused(capsys, *words, f"out={tmp_path / 'a'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "secret"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "RUN"), "first, second"),
        (("evaluate", "RUN", "task=frist"), "did you mean 'first'"),
        (("evaluate", "RUN", "task=first", "trial=trial-9"), "no trial 'trial-9'"),
        (("evaluate", "RUN", "task=first", "data=nowhere.jsonl"), "nowhere.jsonl"),
        (("evaluate", "RUN", "task=first", "exact_macth=true"), "exact_match"),
        (("evaluate", "RUN", "task=first", "limit=3"), "max_samples"),
        (("evaluate", "RUN", "task=first", "exact_match=true", "answer_pattern=("), "regular expression"),
        (("evaluate", "BASE", "data=TEXT", "exact_match=true"), "running text has no prompt"),
        (("evaluate", "BASE"), "data=FILE"),
        (("evaluate", "BASE", "task=first"), "no run here, of which task= could name one"),
        (("evaluate", "BASE", "data=x", "adapter=no/such"), "no folder"),
        (("generate", "RUN", "task=first"), "no prompt"),
        (("generate", "RUN", "task=first", "prompt=a", "top_p=0"), "top_p"),
        (("generate", "RUN", "task=first", "prompt=a", "max_new_tokens=100000"), "max_new_tokens"),
        (("generate", "nowhere/at/all", "prompt=a"), "nowhere/at/all"),
        (("export", "RUN", "task=first"), "out=FOLDER"),
        (("export", "RUN", "task=first", "out=/tmp/x", "kind=merge"), "merged"),
        (("export", "RUN", "task=first", "out=/tmp/nowhere-x", "kind=merged", "max_shard_size=big"), "max_shard_size"),
        (("export", "BASE", "out=/tmp/nowhere-x"), "expected one"),
        (("doctor", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_wrong_use_is_answered_in_one_line(run_dir, base, tmp_path, capsys, words, said):
    (tmp_path / "text.jsonl").write_text('{"text": "once upon a time"}\n' * 2)
    places = {"RUN": str(run_dir), "BASE": str(base), "data=TEXT": f"data={tmp_path / 'text.jsonl'}"}
    assert said in refused(capsys, *(places.get(word, word) for word in words))


def test_an_unfinished_run_says_that_it_has_no_adapter_yet(tmp_path, capsys):
    rows = {"train": "rows.jsonl"}
    config = TuneConfig.model_validate(
        {"output_dir": "x", "model": {"model_name_or_path": str(TINY)}, "tasks": [{"name": "a", "data": rows}]}
    )
    run = tmp_path / "other"
    with Journal.open(run, config_text=dump_config(config), identity="d"):
        pass
    assert "run tune to its end" in refused(capsys, "evaluate", run)


@pytest.mark.parametrize("settings", [EvaluateSettings, GenerateSettings, ExportSettings])
def test_every_setting_of_a_verb_is_told_by_its_help(settings, capsys):
    verb = settings.__name__.removesuffix("Settings").lower()
    assert main([verb, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert set(told(settings)) == set(settings.model_fields)
    for name, text in told(settings).items():
        assert f"{name} {' '.join(str(text).split()).removesuffix(']')}" in said  # of a section it goes on


def test_doctor_tells_the_machine_and_what_a_run_would_take(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {i}"}) + "\n" for i in range(20)))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'run'}\nmodel: {{model_name_or_path: {TINY}, random_init: true}}\n"
        f"search: {{lora_rank: [4, 8]}}\ntasks:\n- {{name: rows, data: {{train: {rows}}}}}\n"
    )
    assert main(["doctor", str(config), "slots=2", "memory_budget=1GiB"]) == 0
    said = capsys.readouterr().out
    words = ("jax ", "device", "adapter GEMM", "attention", "compile cache", "18 rows", "2 slots, as asked for")
    words = (
        *words,
        "of their tokens are padding",
        "if no trial ends early",
        "to compile and ~",
        "of 1.00 GiB of a device",
    )
    for word in words:
        assert word in said
    assert main(["doctor", str(config), "mesh={adapter: 2, tensor: 2}"]) == 0
    said = capsys.readouterr().out
    for word in (
        "adapter: 2, tensor: 2, data: 1",
        "a device    keeps",
        "a step      all-gathers",
        "1 of 2 slots",
        "remat none",
    ):
        assert word in said
    assert main(["doctor", str(config), "mesh={tensor: 8}"]) == 2
    assert "mesh.tensor: given 8, expected a divisor of the model's 2 key heads" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
