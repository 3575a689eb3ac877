"""Preference pairs in every form in which people keep them, and pairs that cannot be used."""

import json

import pytest

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import dataset_of, load_datasets
from jaxlm.data.examples import check_labels, check_samples
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer("configs/tiny")
Q, GOOD, BAD = "What is it?", "A cat.", "Go away."
USER = {"role": "user", "content": Q}
SAID = [{"role": "assistant", "content": text} for text in (GOOD, BAD)]
FROM = [{"from": "gpt", "value": text} for text in (GOOD, BAD)]

FORMS = {
    "texts": {"prompt": Q, "chosen": GOOD, "rejected": BAD},
    "turns of TRL": {"prompt": [USER], "chosen": [SAID[0]], "rejected": [SAID[1]]},
    "implicit turns of TRL": {"chosen": [USER, SAID[0]], "rejected": [USER, SAID[1]]},
    "a prompt that the answers bring": {"prompt": f"{Q} ", "chosen": [USER, SAID[0]], "rejected": [USER, SAID[1]]},
    "texts after turns": {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    "alpaca": {"instruction": Q, "input": "", "chosen": GOOD, "rejected": BAD},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}], "chosen": FROM[0], "rejected": FROM[1]},
    "axolotl": {"messages": [USER], "chosen": SAID[0], "rejected": SAID[1]},
}


def pairs_of(*rows, **more):
    kinds = {"chat_template": "chatml", "max_length": 512} | more
    return dataset_of(list(rows), DataConfig(train="rows", **kinds), TOKENIZER)


def texts(example) -> list[tuple[str, str]]:
    """Of each answer all that is read, and what of it is learnt."""
    return [tuple(str(TOKENIZER.decode(ids)) for ids in (row.tokens, row.tokens[row.targets])) for row in example.rows]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_to_the_same_pair(form):
    found = pairs_of(FORMS[form])
    assert not found.notes
    wanted = pairs_of(FORMS["texts"])
    assert found.digest == wanted.digest
    (chosen, learnt), (rejected, avoided) = texts(found.examples[0])
    assert Q in chosen and Q in rejected and learnt.startswith(GOOD) and avoided.startswith(BAD)


def test_what_a_history_has_the_assistant_say_is_no_part_of_either_answer():
    """Means over tokens would count it."""
    row = FORMS["alpaca"] | {"history": [["Hello?", "Yes."]]}
    (whole, learnt), (other, avoided) = texts(pairs_of(row).examples[0])
    assert "Yes." in whole and "Yes." in other
    assert learnt.startswith(GOOD) and avoided.startswith(BAD)


@pytest.mark.parametrize("answers", [('{"a": 1}', '{"a": 2}'), ("[1, 2]", "Sorry."), ("[]", "[ ]"), ('["a"]', "{}")])
def test_answers_in_json_that_are_no_turns_are_texts(answers):
    row = {"prompt": '{"sum": [1, 1]}', "chosen": answers[0], "rejected": answers[1]}
    (whole, learnt), (_, avoided) = texts(pairs_of(row).examples[0])
    assert row["prompt"] in whole and learnt.startswith(answers[0]) and avoided.startswith(answers[1])


def test_turns_in_json_are_turns():
    row = {"prompt": json.dumps([USER]), "chosen": json.dumps([SAID[0]]), "rejected": json.dumps(SAID[1])}
    assert pairs_of(row).digest == pairs_of(FORMS["texts"]).digest


def test_texts_without_a_prompt_begin_with_it():
    row = {"chosen": "Human: Hello? Assistant: Hi there.", "rejected": "Human: Hello? Assistant: Hm, go."}
    (whole, learnt), (_, avoided) = texts(pairs_of(row).examples[0])
    assert (
        whole.startswith("Human: Hello? Assistant: H")
        and learnt.startswith(" Hi there.")
        and avoided.startswith(" Hm,")
    )


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": Q, "chosen": GOOD, "rejected": GOOD}, "'chosen' and 'rejected' are the same"),
        ({"prompt": Q, "chosen": GOOD, "rejected": [SAID[1]]}, "one of 'chosen' and 'rejected' is a string"),
        ({"prompt": Q, "chosen": GOOD, "rejected": " "}, "'rejected' is empty"),
        ({"prompt": Q, "chosen": GOOD}, "columns are 'prompt', 'chosen'"),
        ({"prompt": Q, "chosen": None, "rejected": BAD}, "columns are 'prompt', 'chosen' (null), 'rejected', expected"),
        ({"chosen": "cats", "rejected": "dogs"}, "the answers do not begin with one, expected one in 'prompt', 'instr"),
        ({"chosen": [USER], "rejected": [USER, SAID[0]]}, "one answer is the beginning of the other"),
        ({"chosen": [SAID[0]], "rejected": [SAID[1]]}, "the answers do not begin with the same turns"),
        ({"prompt": [USER], "chosen": 3, "rejected": [SAID[1]]}, "an answer is a number"),
        (
            {"prompt": "Which?", "chosen": [USER, SAID[0]], "rejected": [USER, SAID[1]]},
            "'prompt' is another turn of the user than that with which 'chosen' and 'rejected' begin",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_skipped_with_its_reason(row, why):
    found = pairs_of(FORMS["texts"], row)
    assert len(found) == 1 and why in str(found.skipped[0])


def test_a_pair_that_a_cut_leaves_nothing_of_or_makes_equal_is_skipped_by_name():
    short = pairs_of(FORMS["texts"])
    ahead = int(short.examples[0].targets.argmax())
    alike = {"prompt": Q, "chosen": GOOD + " It purrs.", "rejected": GOOD + " It barks."}
    tiny = [{"prompt": "", "chosen": text, "rejected": "b"} for text in "cd"]
    found = pairs_of(*tiny, FORMS["texts"], alike, max_length=ahead)
    assert [skipped.line for skipped in found.skipped] == [3, 4]
    assert "no token to learn within max_length" in str(found.skipped[0])
    cut = pairs_of(FORMS["texts"], alike, max_length=ahead + 3)
    assert "chosen and rejected are the same once cut" in str(cut.skipped[0])
    assert cut.examples[0].truncated


def test_pairs_are_split_and_counted_as_pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{Q} {i}", "chosen": f"{GOOD} {i}", "rejected": BAD} for i in range(10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    train, validation = load_datasets(DataConfig(train=str(file), validation_samples=3, max_length=512), TOKENIZER)
    assert (len(train), len(validation)) == (8, 3)
    assert "8 pairs" in train.summary()[0]
    assert sum(len(row.tokens) for row in train.rows) == train.tokens and len([*train.rows]) == 16


def test_pairs_and_rows_with_one_answer_are_not_taken_for_each_other():
    with pytest.raises(UserError, match="rows:1: a preference pair, expected a row with one answer"):
        check_samples(pairs_of(FORMS["texts"]).examples, pairs=False)
    with pytest.raises(UserError, match="rows:1: a row of format prompt-completion, expected a preference pair"):
        check_samples(pairs_of({"prompt": Q, "completion": GOOD}).examples, pairs=True)


def test_a_prompt_that_texts_bring_themselves_is_told():
    found = pairs_of({"prompt": Q, "chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"})
    assert "both answers begin with 'prompt', which is written before them, too (1 row)" in found.notes[0]


LABELLED = {
    "texts of TRL": {"prompt": Q, "completion": GOOD, "label": True},
    "turns of TRL": {"prompt": [USER], "completion": [SAID[0]], "label": True},
    "LLaMA-Factory": {"messages": [USER, SAID[0]], "label": True},
    "of a table": {"prompt": Q, "completion": GOOD, "label": "True"},
}


@pytest.mark.parametrize("form", LABELLED)
def test_every_form_of_an_answer_alone_comes_to_the_same(form):
    found = pairs_of(LABELLED[form])
    assert not found.notes and found.digest == pairs_of(LABELLED["texts of TRL"]).digest
    assert found.examples[0].desirable is True and "1 desirable answer, 0 undesirable ones" in found.summary()[1]
    [(whole, learnt)] = texts(found.examples[0])
    assert Q in whole and learnt.startswith(GOOD)
    assert found.digest != pairs_of(LABELLED[form] | {"label": False}).digest
    check_labels([*found.examples, *pairs_of(FORMS["texts"]).examples])


def test_answers_without_a_label_that_says_yes_or_no_are_refused():
    row = {"prompt": Q, "completion": GOOD, "label": 1}
    with pytest.raises(UserError, match="rows:1: a row of format prompt-completion, expected an answer with a 'label'"):
        check_labels(pairs_of(row).examples)
    found = pairs_of(LABELLED["texts of TRL"], row, format="unpaired-preference")
    assert "'label' is a number, expected true or false" in str(found.skipped[0])
