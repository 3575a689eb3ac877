"""Greedy answers of slots together are those of each alone, whatever else is in the batch, on every mesh."""

import numpy as np
import pytest
from stopping import AskedAfter
from tiny import CONFIG, heterogeneous, shared_executor

from altojax.device.multi_lora.routing import Routing
from altojax.run.loop.decoding import Decoding, row_bytes
from jaxlm.data.answers import OpenQuestions
from jaxlm.models.generate import generate
from jaxrun.process.interrupt import Stopped

pytestmark = pytest.mark.slow

MESHES = {
    "8": {"adapter": 8},
    "2x2 and 2 replicas": {"adapter": 2, "tensor": 2, "data": 2},
}
SLOTS = (0, 5, 3, 6)
ROOM = 2**30


def filled(mesh=None):
    executor = shared_executor(8, 8, mesh)
    for runner, slot in zip(heterogeneous(), SLOTS, strict=True):
        snapshot = runner.snapshot
        for pair in snapshot["adapters"].values():
            pair["b"] = np.random.default_rng(slot).normal(0, 0.3, pair["b"].shape).astype(np.float32)
        executor.put(slot, snapshot, runner.hyper)
    return executor


def questions(count, seed, *, most=6, ends=()):
    random = np.random.default_rng(seed)
    tokens = tuple(random.integers(0, 64, int(random.choice((1, 6, 13)))).astype(np.int32) for _ in range(count))
    return OpenQuestions(tokens, ("",) * count, ("",) * count, most, tuple(ends))


def alone(executor, slot, asked):
    """The answers of a slot, a prompt at a time, as `altojax generate` makes them."""
    made = []
    for tokens in asked.tokens:
        routing = Routing(np.array([slot], np.int32), executor._hyper.scale.astype(np.float32))
        new = np.asarray(
            generate(
                executor.model(),
                tokens[None],
                np.array([len(tokens)]),
                max_new_tokens=asked.max_new_tokens,
                eos_ids=asked.ends,
                routing=routing,
            )
        )[0]
        made.append(answer(new, asked))
    return made


def answer(tokens, asked):
    """What is left of tokens that nothing ended."""
    tokens = tokens[: asked.max_new_tokens]
    stops = np.flatnonzero(np.isin(tokens, asked.ends))
    return tokens[: stops[0]] if stops.size else tokens


def same(found, wanted):
    assert [list(one) for one in found] == [list(one) for one in wanted]


@pytest.fixture(scope="module")
def free():
    """Answers that nothing ends but their length."""
    return {slot: alone(filled(), slot, questions(5, slot)) for slot in SLOTS}


@pytest.fixture(scope="module")
def due(free):
    ends = {slot: (int(made[0][2]), int(made[1][1])) for slot, made in free.items()}
    # Tasks of unlike limits and ends share batches.
    return [(slot, questions(5, slot, most=6 - slot % 2, ends=ends[slot][: 1 + slot % 2])) for slot in SLOTS]


@pytest.fixture(scope="module")
def wanted(due, free):
    found = {slot: [answer(made, asked) for made in free[slot]] for slot, asked in due}
    assert len({tuple(made[3]) for made in found.values()}) == len(SLOTS), "the slots hold different adapters"
    assert len({len(one) for made in found.values() for one in made}) > 2, "some end early"
    return found


def test_slots_together_answer_as_each_prompt_alone_does(due, wanted):
    executor = filled()
    together = Decoding(executor, [asked for _, asked in due], ROOM).answers(due)
    for slot in SLOTS:
        same(together[slot], wanted[slot])


def test_less_memory_means_more_batches_and_the_same_answers(due, wanted):
    executor = filled()
    little = 3 * row_bytes(CONFIG, 13, 6)
    decoding = Decoding(executor, [asked for _, asked in due], little)
    before = len(executor.programs.stats().done)
    found = decoding.answers(due)
    for slot in SLOTS:
        same(found[slot], wanted[slot])
    # Another trial, fewer of them, other prompts: data, no shape.
    for slot, asked in due:
        same(decoding.answers([(slot, asked)])[slot], wanted[slot])
    assert len(executor.programs.stats().done) == before + 1


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_mesh_answers_as_one_device_does(mesh, due, wanted):
    found = Decoding(filled(mesh), [asked for _, asked in due], ROOM).answers(due)
    for slot in SLOTS:
        same(found[slot], wanted[slot])


def test_a_running_average_answers_in_place_of_its_adapter(due):
    executor = filled()
    asked = [due[0]]
    slot = due[0][0]
    found = Decoding(executor, [one for _, one in asked], ROOM).answers(asked, average=0)
    executor.clear(slot)  # averages were zero: the base answers
    same(found[slot], alone(executor, slot, due[0][1]))


def test_who_asks_it_to_stop_waits_for_a_batch_at_most(due):
    executor = filled()
    decoding = Decoding(executor, [asked for _, asked in due], row_bytes(CONFIG, 13, 6))
    decoding.answers(due[:1])
    with pytest.raises(Stopped):
        decoding.answers(due, asked=AskedAfter(3))
