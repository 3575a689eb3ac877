"""A trial in a few characters: what sets it apart, and no more."""

from hypothesis import given
from hypothesis import strategies as st

from altojax.config.search.space import TrialConfig
from altojax.report.trial_labels import SHORT, labels


def facts(**values) -> dict:
    one = TrialConfig(**values)
    return {**dict(one), "lora_alpha": one.alpha, "seed": 0}


def test_only_what_varies_is_told_in_few_characters():
    told = labels([
        facts(lora_rank=16, learning_rate=3e-4, batch_size=2),
        facts(lora_rank=8, learning_rate=1.25e-3, batch_size=2),
        facts(lora_rank=8, learning_rate=3e-4, batch_size=4),
    ])  # fmt: skip
    assert told == ["r16 lr3e-4 b2", "r8 lr0.00125 b2", "r8 lr3e-4 b4"]
    assert labels([facts()]) == [""]


def test_alpha_is_told_where_it_does_not_follow_from_the_rank():
    assert labels([facts(lora_rank=8), facts(lora_rank=8, lora_alpha=8.0)]) == ["a16", "a8"]


def test_names_and_shares_read_as_they_are_written():
    told = labels([
        facts(target_modules="all-linear", warmup_ratio=0.05, lr_scheduler_type="cosine", use_rslora=True),
        facts(target_modules=["q_proj", "v_proj"], warmup_ratio=0.1, lr_scheduler_type="linear"),
    ])  # fmt: skip
    assert told == ["rslora yes all cosine warm0.05", "rslora no q,v linear warm0.1"]


def test_what_a_loss_of_pairs_does_not_read_is_not_told_of_it():
    read = [{"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.0}, {"loss_type": "ipo", "beta": 0.2}]
    assert labels(read) == ["sigmoid β0.1", "ipo β0.2"]
    smoothed = [*read, {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.2}]
    assert labels(smoothed) == ["sigmoid β0.1 smooth0", "ipo β0.2", "sigmoid β0.1 smooth0.2"]


def test_every_field_of_a_configuration_has_a_short_name():
    assert set(SHORT) == set(TrialConfig.model_fields)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 0.1), st.integers(1, 9)), min_size=2, unique=True))
def test_unlike_trials_have_unlike_labels(drawn):
    """Up to four digits of a number, which is what random draws have."""
    told = labels([facts(lora_rank=r, learning_rate=float(f"{rate:.4g}"), batch_size=b) for r, rate, b in drawn])
    assert len(set(told)) == len({(r, f"{rate:.4g}", b) for r, rate, b in drawn})
