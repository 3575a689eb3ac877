"""What a teacher expects is kept on disk as it was computed, of the rows that are read, and computed once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twist_runs import write_teacher

from jaxlm.data.text_rows import TextRows
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import Interrupt, Stopped
from twistjax.training.local_training import text_likeliest
from twistjax.training.teacher import check_teacher, label_bytes, label_rows, open_labels

TOKENS = np.random.default_rng(0).integers(0, 256, (9, 16)).astype(np.int32)
READ = np.array([1, 2, 4, 7, 8])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(write_teacher(tmp_path_factory.mktemp("teacher") / "model"))


def test_rows_that_are_read_get_what_the_teacher_expects_of_them_and_are_labelled_once(teacher, tmp_path, monkeypatch):
    rows = TextRows("text", TOKENS, np.ones_like(TOKENS, bool))
    room = label_bytes(tmp_path, 264, len(READ), 16)
    facts = label_rows(tmp_path, teacher, rows, READ, dtype=jnp.float32, rows_at_once=2)
    labels = open_labels(tmp_path, rows, READ, 264)
    assert room == labels.tokens.nbytes + labels.log_probabilities.nbytes and label_bytes(tmp_path, 264, 5, 16) == 0
    config, model = load_model(teacher, dtype=jnp.float32)
    wanted = text_likeliest(Functional(config), weights_by_path(model, jnp.float32), jnp.asarray(TOKENS))
    found = labels.of(np.array([[8, 1], [4, 4]]))
    assert found.tokens.shape == (2, 2, 16, 64)
    # float16 has 11 bits, and two tokens that are as likely as one another up to rounding may change places.
    values = np.asarray(wanted.log_probabilities)[[[8, 1], [4, 4]]]
    np.testing.assert_allclose(found.log_probabilities, values, rtol=2.0**-10)
    assert (found.tokens == np.asarray(wanted.tokens)[[[8, 1], [4, 4]]]).mean() > 0.99
    odd = labels._replace(tokens=np.full_like(labels.tokens, 264))
    with pytest.raises(UserError, match=r"teacher: is damaged, expected what the run wrote"):
        odd.of(np.array([8]))
    monkeypatch.setattr("twistjax.training.teacher.load_model", None)
    assert label_rows(tmp_path, teacher, rows, READ, dtype=jnp.float32, rows_at_once=2) == facts
    with pytest.raises(UserError, match="of other rows than the run's"):
        open_labels(tmp_path, rows, READ[:2], 264)
    with pytest.raises(UserError, match="of other rows than the run's"):
        open_labels(tmp_path, rows, READ, 2**17)
    with pytest.raises(UserError, match=r"cannot be read .* an output_dir that all processes of a run share"):
        open_labels(tmp_path / "elsewhere", rows, READ, 264)


def test_a_stop_or_a_teacher_without_finite_numbers_leaves_no_labels(teacher, tmp_path, monkeypatch):
    rows, asked = TextRows("text", TOKENS, np.ones_like(TOKENS, bool)), Interrupt()
    config, model = load_model(teacher, dtype=jnp.float32)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, model)
    monkeypatch.setattr("twistjax.training.teacher.load_model", lambda *_, **__: (config, nan))
    with pytest.raises(UserError, match=r"what .* expects is not finite, expected undamaged weights"):
        label_rows(tmp_path, teacher, rows, READ, dtype=jnp.float32, rows_at_once=2)
    asked.request()
    with pytest.raises(Stopped):
        label_rows(tmp_path, teacher, rows, READ, dtype=jnp.float32, rows_at_once=2, asked=asked)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_another_vocabulary_or_of_shorter_rows_is_refused(teacher):
    model, tokenizer = read_model_config(teacher), load_tokenizer("configs/tiny")
    check_teacher(teacher, model, tokenizer, 512)
    with pytest.raises(UserError, match=r"training\.teacher: .*/none: no such file or folder, .*; or self"):
        check_teacher(f"{teacher}/none", model, tokenizer, 512)
    with pytest.raises(UserError, match=r"another vocabulary of 264, expected .* own tokenizer, with 300"):
        check_teacher(teacher, replace(model, vocab_size=300), tokenizer, 32)
    with pytest.raises(UserError, match=r"reads 512 tokens, expected those of a row, 513"):
        check_teacher(teacher, model, tokenizer, 513)
