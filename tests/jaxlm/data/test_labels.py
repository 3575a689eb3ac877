"""Questions with labels: every label is asked after the same prompt, and the right one is known."""

import numpy as np
import pytest
from runs import TINY

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import dataset_of
from jaxlm.data.encoding import Encoder
from jaxlm.data.labels import MOST_LABELS, ask, labels_of
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer(TINY)
LABELS = ["no", "perhaps", "yes"]
PAIRS = [{"prompt": f"Is {k} odd?", "completion": LABELS[k % 3]} for k in range(12)]
CHATS = [
    {"messages": [
        {"role": "user", "content": f"Is {k} odd?"},
        {"role": "assistant", "content": "Wait."},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": LABELS[k % 3]},
    ]}
    for k in range(12)
]  # fmt: skip


def examples(rows, **more):
    config = DataConfig(train="rows", max_length=256, **more)
    return dataset_of(rows, config, TOKENIZER).examples, Encoder.of(config, TOKENIZER)


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["pairs", "conversations"])
def test_the_candidate_of_its_own_label_is_the_row_itself_and_all_share_its_prompt(rows):
    given, encoder = examples(rows)
    questions = ask(given, labels_of(given), encoder, 256, 12)
    assert questions.labels == tuple(LABELS) and len(questions) == 12
    own = {example.tokens.tobytes() for example in given}
    for place, right in enumerate(questions.right):
        candidates = questions.candidates[3 * place : 3 * place + 3]
        assert candidates[right].tokens.tobytes() in own
        starts = [int(np.flatnonzero(one.targets)[0]) for one in candidates]
        assert len(set(starts)) == 1 and len({one.tokens[: starts[0]].tobytes() for one in candidates}) == 1
        texts = [TOKENIZER.decode(one.tokens[one.targets], skip_special_tokens=True).strip() for one in candidates]
        assert texts == LABELS


def test_the_choice_of_rows_is_the_same_each_time_and_begins_the_larger_one():
    given, encoder = examples(PAIRS)
    few, all_ = (ask(given, LABELS, encoder, 256, count) for count in (5, 12))
    assert [one.tokens.tobytes() for one in few.candidates] == [one.tokens.tobytes() for one in all_.candidates[:15]]


def test_a_hit_is_the_lowest_sum_at_its_own_label_and_nothing_else():
    given, encoder = examples(PAIRS)
    questions = ask(given, LABELS, encoder, 256, 4)
    losses = np.full((4, 3), 2.0)
    losses[range(4), questions.right] = 1.0
    assert questions.hits(losses.ravel()).sum() == 4
    losses[0, (questions.right[0] + 1) % 3] = 0.5
    losses[1, (questions.right[1] + 1) % 3] = np.nan
    assert questions.hits(losses.ravel()).sum() == 2


def test_an_answer_that_nobody_trained_on_is_a_miss_and_said():
    given, encoder = examples(PAIRS)
    questions = ask(given, ["no", "yes"], encoder, 256, 12)
    assert (questions.right == -1).sum() == 4
    assert "4 with a label that no training row has" in questions.summary(12)
    assert questions.hits(np.zeros(24)).sum() <= 8


def test_rows_that_some_label_makes_too_long_are_not_asked():
    given, encoder = examples(PAIRS)
    longest = max(len(example.tokens) for example in given)
    with pytest.raises(UserError, match="no validation row has an answer and room for every label within 4 tokens"):
        ask(given, LABELS, encoder, 4, 12)
    assert len(ask(given, LABELS, encoder, longest + 8, 12)) == 12


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "completion": str(k)} for k in range(MOST_LABELS + 1)], "257 different completions"),
        ([{"prompt": str(k), "completion": "same"} for k in range(3)], "1 different completions"),
        ([{"text": "once"}, {"text": "twice"}], "no answer at the row's end"),
    ],
)
def test_completions_that_are_no_labels_are_refused_in_a_line(rows, said):
    given, _ = examples(rows)
    with pytest.raises(UserError, match=said) as refused:
        labels_of(given)
    assert "\n" not in str(refused.value) and "select_by: accuracy" in str(refused.value)
