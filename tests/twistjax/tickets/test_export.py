"""A ticket that the command line wrote is an ordinary model, and an export destroys nothing."""

import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from twist_runs import TEXT, write_twist_config

import twistjax.tickets.export
from jaxlm.data.chat.chat_templates import template_text
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxrun.files.atomic import digest_of
from twistjax.cli import main
from twistjax.comparison.measure import file_bytes
from twistjax.report.write_report import write_report
from twistjax.tickets.sampling import Drawn

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run whose tickets are drawn."""
    root = tmp_path_factory.mktemp("twist")
    rest = """
subnetworks: {workers: 2, kappa: 0.5, block: 16}
training: {local_steps: 2, batch_size: 2, train_samples: 8}
"""
    assert main(["train", str(write_twist_config(root, rest)), "data.chat_template=chatml"]) == 0
    assert main(["tickets", str(root / "run"), "draws=2"]) == 0
    return root / "run"


def test_plain_transformers_loads_a_uniform_ticket_with_its_tokenizer_and_generation_config(run, reference, tmp_path):
    folder = tmp_path / "models" / "half"
    assert main(["export", str(run), "kappa=0.5", f"out={folder}"]) == 0
    told = json.loads(reference("load_ticket.py", folder, TEXT[:60], tmp_path / "out.npz").splitlines()[-1])
    assert told["model"] == "LlamaForCausalLM"
    assert "| written as | LlamaForCausalLM |" in (folder / "README.md").read_text()
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {"eos_token_id": 258, "pad_token_id": 259} == {key: told["generation"][key] for key in written}
    with np.load(tmp_path / "out.npz") as found:
        tokens, logits, written = found["tokens"], found["logits"], found["written"]
    assert tokens.tolist() == [load_tokenizer(folder)(TEXT[:60])["input_ids"]]
    assert written.shape[1] > tokens.shape[1]
    _, model = load_model(folder, dtype=jnp.float32)
    ours = np.asarray(model.logits(model(jnp.asarray(tokens, jnp.int32))))
    assert np.abs(ours - logits).max() <= TOLERANCE


def test_a_ticket_as_gguf_writes_the_same_logits_and_brings_its_tokenizer(run, tmp_path, capsys):
    for form in ("hf", "gguf"):
        assert main(["export", str(run), "kappa=0.5", f"format={form}", f"out={tmp_path / form}"]) == 0
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {"README.md", "export.json", "gguf.gguf"}
    assert "| written as | GGUF of the architecture llama |" in (tmp_path / "gguf" / "README.md").read_text()
    read = [load_model(path, dtype=jnp.float32)[1] for path in (tmp_path / "hf", tmp_path / "gguf" / "gguf.gguf")]
    tokens = jnp.asarray([load_tokenizer(tmp_path / "gguf" / "gguf.gguf")(TEXT[:60])["input_ids"]], jnp.int32)
    assert tokens.tolist() == [load_tokenizer(tmp_path / "hf")(TEXT[:60])["input_ids"]]
    ours, theirs = (np.asarray(model.logits(model(tokens))) for model in read)
    np.testing.assert_array_equal(theirs, ours)
    assert load_tokenizer(tmp_path / "gguf" / "gguf.gguf").chat_template == template_text("chatml")


def test_an_export_brings_the_chat_template_that_the_config_names(run, tmp_path):
    assert main(["export", str(run), "kappa=0.5", f"out={tmp_path / 'half'}"]) == 0
    assert load_tokenizer(tmp_path / "half").chat_template == template_text("chatml")
    assert load_tokenizer("configs/tiny").chat_template != template_text("chatml")


def test_everything_of_an_export_is_for_all_to_read_and_its_size_is_what_is_loaded(run, tmp_path):
    folder = tmp_path / "half"
    assert main(["export", str(run), "kappa=0.5", f"out={folder}"]) == 0
    (tmp_path / "new").write_text("as the mask has it")
    usual = (tmp_path / "new").stat().st_mode
    assert {path.name: path.stat().st_mode for path in folder.iterdir()} == dict.fromkeys(
        (path.name for path in folder.iterdir()), usual
    )
    whole = (folder / "model.safetensors").stat().st_size
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"left over")
    assert file_bytes(folder) == whole


def test_export_replaces_a_model_only_when_told_to_and_anything_else_never(run, tmp_path, capsys):
    words = ["export", str(run), "kappa=0.5", f"out={tmp_path}/half"]
    assert main(words) == 0
    (tmp_path / "half" / "note").write_text("mine")
    assert main(words) == 2
    assert "expected a new folder or overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "half" / "note").exists()
    assert main([*words, "overwrite=true"]) == 2
    assert "half: holds note, which no export wrote, and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "half" / "note").read_text() == "mine"
    (tmp_path / "half" / "note").unlink()
    assert main([*words, "overwrite=true"]) == 0


def test_a_model_that_is_not_read_back_as_written_is_not_put_in_place(run, tmp_path, capsys, monkeypatch):
    words = ["export", str(run), "kappa=0.5", f"out={tmp_path}/half"]
    assert main(words) == 0
    before = digest_of(tmp_path / "half")
    read = twistjax.tickets.export.weights_by_path
    monkeypatch.setattr(
        twistjax.tickets.export, "weights_by_path", lambda *of: {path: value + 1 for path, value in read(*of).items()}
    )
    assert main([*words, "overwrite=true"]) == 2
    assert "half: " in (said := capsys.readouterr().err) and "was not read back as it was written" in said
    assert digest_of(tmp_path / "half") == before
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def losses_of(run, kappa: str = "0.5") -> list[float]:
    return json.loads((run / "tickets.json").read_text())["kappas"][kappa]["losses"]


def test_tickets_exports_and_reports_warn_and_a_good_ticket_is_not_blamed(run, tmp_path, capsys, monkeypatch):
    assert main(["tickets", str(run), "draws=2"]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr("twistjax.report.loss_gap.FAR_WORSE", -1e3)
    assert main(["tickets", str(run), "draws=2"]) == 0
    assert capsys.readouterr().err.startswith("warning: the best ticket of kappa 0.5 is far worse than the full model")
    assert "the best ticket of kappa 0.5 is far worse" in (run / "report.html").read_text()
    assert main(["export", str(run), "kappa=0.5", f"out={tmp_path}/half"]) == 0
    assert "warning: this ticket of kappa 0.5 is far worse" in capsys.readouterr().err
    assert "> Warning: this ticket is far worse than the full model" in (tmp_path / "half" / "README.md").read_text()


def test_the_card_of_an_export_states_its_own_numbers(run, tmp_path, capsys):
    assert main(["tickets", str(run), "draws=2"]) == 0
    for ticket, loss in enumerate(losses_of(run)):
        out = tmp_path / str(ticket)
        assert main(["export", str(run), "kappa=0.5", f"ticket={ticket}", f"out={out}"]) == 0
        card = (out / "README.md").read_text()
        [(own, full)] = re.findall(r"validation loss \| ([\d.]+) nats per token \(full model: ([\d.]+)\)", card)
        assert float(own) == pytest.approx(loss, abs=1e-4) and float(own) != float(full)
        assert f"{math.exp(loss):.2f} (full model: {math.exp(float(full)):.1f}"[:-1] in card
        for word in ("share kept (kappa) | 0.5", "parameters |", "text.txt", "4 rows"):
            assert word in card
    assert main(["export", str(run), "kappa=0.5", "ticket=7", f"out={tmp_path}/seven"]) == 0
    assert re.search(r"validation perplexity [\d.]+, full model [\d.]+", capsys.readouterr().out)


def test_a_repaired_ticket_is_the_one_that_was_scored_and_says_that_it_was_calibrated(run, tmp_path, capsys):
    assert main(["tickets", str(run), "draws=2", "repair=true", "repair_rows=16"]) == 0
    told = json.loads((run / "tickets.json").read_text())["kappas"]["0.5"]
    assert told["repaired"] != min(told["losses"])
    words = ["export", str(run), f"out={tmp_path}/half", "repair=true", "repair_rows=16"]
    assert main([*words, "kappa=1"]) == 2
    assert "the full model lacks nothing" in capsys.readouterr().err
    assert main([*words, "kappa=0.5"]) == 0
    assert f"validation perplexity {math.exp(told['repaired']):.2f}" in capsys.readouterr().out
    card = (tmp_path / "half" / "README.md").read_text()
    assert "It was calibrated" in card and "calibration or tuning" not in card
    assert f"{told['repaired']:.4f} nats per token" in card


def test_losses_of_hundreds_of_nats_are_drawn_and_told(run, monkeypatch):
    path = run / "tickets.json"
    told = json.loads(path.read_text())
    drawn = Drawn(0.5, (800.0, 9e5))
    mean, deviation, best = drawn.perplexity
    entry = {"perplexity": {"mean": mean, "sd": deviation, "best": best}, "best": 0, "losses": list(drawn.losses)}
    told["kappas"]["0.5"] = entry
    told["facts"]["full_perplexity"] = math.exp(700)
    path.write_text(json.dumps(told, allow_nan=False))
    assert (run / "report.html") in write_report(run)
