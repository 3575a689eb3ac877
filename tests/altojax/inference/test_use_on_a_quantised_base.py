"""An adapter is used and merged on the form of the base that it was trained on, or it is said that it is not."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter
from quantised_folders import quantised
from runs import TINY

import altojax
from altojax.adapters.merge import merge
from altojax.adapters.peft_files import export_adapter, read_adapter
from altojax.cli import main
from altojax.config.tune_config import BaseSpec
from altojax.inference.loaded_model import load_adapted
from altojax.inference.model_source import find_source
from altojax.run.prepare import PreparedBase
from jaxlm.files.hf import save_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.quantised.formats import PACKS, make_dense
from jaxlm.quantised.nf4 import TableWeight
from jaxrun.process.errors import UserError

TOKENS = np.arange(3, 15, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config, model = load_model(TINY, dtype=jnp.float32, random_init=True, seed=0)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_model(folder, config, model, dtype=jnp.float32, tokenizer=load_tokenizer(TINY))
    return folder


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """The same adapter, said to be trained on several forms of the base."""
    config, _ = load_model(base, dtype=jnp.float32)
    found = {}
    for form in ("nf4", "int8", "none", ""):
        spec, adapter = random_adapter(config, ["q_proj", "down_proj"])
        found[form] = tmp_path_factory.mktemp("adapters") / (form or "plain")
        export_adapter(found[form], replace(spec, base_quantization=form), adapter, config, None, {"by": "a test"})
    return found


def on_nf4(base, adapter):
    """The adapter merged into what nf4 stands for."""
    config, model = load_model(base, dtype=jnp.float32, pack=PACKS["nf4"])
    make_dense(model, jnp.float32)
    merge(model, *read_adapter(adapter, config))
    return model


def test_an_adapter_says_what_it_was_trained_on_where_that_was_quantised(adapters):
    fields = {form: json.loads((path / "adapter_config.json").read_text()) for form, path in adapters.items()}
    assert fields["nf4"].pop("base_model_quantization") == "nf4" and fields["nf4"] == fields[""]
    assert "in nf4" in (adapters["nf4"] / "README.md").read_text()


def test_it_is_used_on_that_form_unless_another_is_asked_for(base, adapters, capsys):
    loaded = load_adapted(find_source(str(base), adapters=[str(adapters["nf4"])]))
    assert isinstance(loaded.adapted.model.layers.mlp.up_proj.kernel.get_value(), TableWeight)
    expected = logits_of(on_nf4(base, adapters["nf4"]), TOKENS)
    found = loaded.adapted.model(jnp.asarray(TOKENS), routing=loaded.adapted.routing([1]))
    np.testing.assert_allclose(loaded.adapted.model.logits(found), expected, atol=2e-5)
    assert not capsys.readouterr().err
    assert find_source(str(base), adapters=[str(adapters[""])]).model.quantize is None
    other = altojax.load(base, adapter=adapters["nf4"], quantize="none")
    assert not isinstance(other.adapted.model.layers.mlp.up_proj.kernel.get_value(), TableWeight)
    assert "nf4: was trained on a base in nf4, and is used on one that is not quantised" in capsys.readouterr().err


def test_a_base_that_was_released_quantised_is_packed_anew_for_an_adapter_on_another_form(base, adapters, tmp_path):
    quantised(base, tmp_path / "m", "nf4")
    forms = {form: find_source(str(tmp_path / "m"), adapters=[str(one)]) for form, one in adapters.items()}
    assert {form: one.model.quantize for form, one in forms.items()} == {
        "nf4": None,
        "int8": "int8",
        "none": "none",
        "": None,
    }
    bases = [
        BaseSpec(model_name_or_path=str(folder), quantize=quantize)
        for folder in (base, tmp_path / "m")
        for quantize in (None, "none")
    ]
    assert [PreparedBase(spec, *[None] * 7).form for spec in bases] == ["", "", "nf4", "none"], "as adapters say it"


def test_adapters_of_different_forms_are_not_compared_unasked(base, adapters):
    both = [str(adapters["nf4"]), str(adapters["int8"])]
    with pytest.raises(UserError, match=r"nf4 on nf4, .*int8 on int8\), expected quantize="):
        find_source(str(base), adapters=both)
    assert find_source(str(base), adapters=both, quantize="int8").model.quantize == "int8"
    with pytest.raises(UserError, match=r"load: quantize: given \"nf5\", expected one of 'nf4', .* or 'none'$"):
        altojax.load(base, quantize="nf5")


def test_merging_dequantises_and_says_so(base, adapters, tmp_path, capsys):
    words = [
        "export",
        str(base),
        f"adapter={adapters['nf4']}",
        "kind=merged",
        "dtype=float32",
        f"out={tmp_path / 'out'}",
    ]
    assert main(words) == 0
    assert "the base's matrices are nf4: they are dequantised, then merged, in float32" in capsys.readouterr().err
    _, merged = load_model(tmp_path / "out", dtype=jnp.float32)
    np.testing.assert_allclose(logits_of(merged, TOKENS), logits_of(on_nf4(base, adapters["nf4"]), TOKENS), atol=1e-6)
