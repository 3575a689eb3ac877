"""The laws hold for any objective: here losses of preference pairs, and the example of docs/extend/objective.md."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, ROWS, TINY_ROWS, Runner, difference, make_executor, make_runner, shared_executor, tick

from altojax.config.objectives import LOSS_TYPES, LossType
from altojax.device.batch import Stream, eval_parts
from altojax.device.batch_shapes import Shape
from altojax.device.footprint import footprint
from altojax.device.objectives.preference import PREFERENCE
from altojax.device.objectives.rows import AnswerRow, References
from altojax.device.sharding import Sharding
from altojax.device.step import StaticPlan
from jaxlm.devices.mesh import make_layout
from jaxlm.models.computation import Remat

pytestmark = pytest.mark.slow

LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5
TICKS = 6
PAGE = Path(__file__).parents[3] / "docs" / "extend" / "objective.md"


def on_page() -> type:
    """The objective that the page shows."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["PairMargin"]


EXAMPLE = on_page()()
PAIRS = PREFERENCE
REFERENCES = References(np.random.default_rng(7).normal(-35, 4, len(ROWS)).astype(np.float32))


@dataclass(frozen=True, eq=False)
class PairRow(AnswerRow):
    """A row of a pair."""

    margin: float = 0.0


PAIR_ROWS = [
    PairRow(row.tokens, row.targets, references=REFERENCES, number=i, margin=0.5 * (i // 2 % 3))
    for i, row in enumerate(ROWS)
]


LONE_ROWS = [replace(row, sign=1 if i // 2 % 3 else -1) for i, row in enumerate(PAIR_ROWS)]
"""Answers, each with one to another prompt."""


class PairRunner(Runner):
    """A trial whose samples are pairs, or by its loss answers alone."""

    @property
    def rows(self) -> list[PairRow]:
        return LONE_ROWS if self.hyper["loss_type"] == LOSS_TYPES.index("kto") else PAIR_ROWS

    @property
    def stream(self) -> Stream:
        return Stream(self.rows, 3, 400, self.batch_size, self.accumulation, PAIRS)


def make(seed: int, rank: int, batch_size: int, loss: LossType = "sigmoid", **named) -> PairRunner:
    kind = LOSS_TYPES.index(loss)
    return PairRunner(**vars(make_runner(seed, rank, batch_size, loss_type=kind, **named)))


def unlike() -> list[PairRunner]:
    return [
        make(1, 4, 1, beta=0.1, dropout=0.1, weight_decay=0.1, sft_weight=0.2),
        make(2, 8, 2, "kto", beta=0.3, desirable_weight=1.0, undesirable_weight=1.5, learning_rate=3e-3, schedule=1),
        make(3, 2, 1, "simpo", beta=2.0, simpo_gamma=0.5, accumulation=3, max_grad_norm=0.05),
    ]


def executor_of(mesh: dict[str, int] | None = None):
    return shared_executor(4, 8, mesh, PAIRS)


def trained(executor, runners: list[PairRunner], slots) -> list[tuple]:
    """Of each trial: its losses, what it measures in the end, and its snapshot."""
    for runner, slot in zip(runners, slots, strict=True):
        runner.enter(executor, slot)
    losses = np.array([tick(executor, runners) for _ in range(TICKS)]).T
    found = executor.measure([(one.slot, one.rows) for one in runners], 6)
    measured = [found[one.slot] for one in runners]
    for runner in runners:
        runner.leave(executor)
    return list(zip(losses, measured, [one.snapshot for one in runners], strict=True))


def agree(found, wanted) -> None:
    for (losses, measured, snapshot), (solo_losses, solo_measured, solo) in zip(found, wanted, strict=True):
        assert np.abs(losses - solo_losses).max() <= LOSS_BOUND
        assert abs(measured["loss"] - solo_measured["loss"]) <= LOSS_BOUND
        assert measured["rewards/accuracies"] == solo_measured["rewards/accuracies"]
        assert difference(snapshot["adapters"], solo["adapters"]) <= ADAPTER_BOUND


@pytest.fixture(scope="module")
def alone():
    """Each trial trained by itself."""
    return [trained(executor_of(), [one], [1])[0] for one in unlike()]


def test_the_loss_is_what_the_page_says_and_so_is_the_metric():
    """Against the log-probabilities of single rows, which cross-entropy measures."""
    plain, executor = shared_executor(4, 8), shared_executor(4, 8, None, EXAMPLE)
    beta = 0.3
    make(1, 4, 1, beta=beta).enter(executor, 1)
    found = executor.measure([(1, PAIR_ROWS)], 8)[1]
    logps = np.array([-plain.evaluate([(0, [row])], 1)[0] * row.targets.sum() for row in PAIR_ROWS])
    ahead = beta * (logps[::2] - logps[1::2])
    margins = np.array([row.margin for row in PAIR_ROWS[::2]])
    assert found["loss"] == pytest.approx(np.logaddexp(0, margins - ahead).mean(), abs=LOSS_BOUND)
    assert found["accuracy"] == pytest.approx((ahead > 0).mean(), abs=1e-7) and 0 < found["accuracy"] < 1


def test_trials_together_get_what_each_gets_alone(alone):
    agree(trained(executor_of(), unlike(), (3, 0, 2)), alone)


def test_a_mesh_of_every_axis_changes_nothing(alone):
    agree(trained(executor_of({"adapter": 2, "tensor": 2, "data": 2}), unlike(), (3, 0, 2)), alone)


def test_a_trial_that_was_parked_goes_on_bit_for_bit():
    def run(parks: bool) -> tuple[list[float], dict]:
        executor, runner = executor_of(), unlike()[2]
        runner.enter(executor, 0)
        losses = []
        for turn in range(TICKS):
            if parks and turn == 4:  # with gradients gathered
                runner.leave(executor)
                runner.enter(executor, 0)
            losses += tick(executor, [runner])
        runner.leave(executor)
        return losses, runner.snapshot

    (losses, snapshot), (again, parked) = run(parks=False), run(parks=True)
    assert losses == again and difference(snapshot, parked) == 0.0


def test_accumulated_pairs_equal_one_large_batch():
    executor, found = executor_of(), []
    numbers = {"beta": 0.2, "sft_weight": 0.3}
    for runner, ticks in ((make(1, 4, 1, accumulation=4, **numbers), 4), (make(1, 4, 4, **numbers), 1)):
        runner.enter(executor, 0)
        loss = sum(tick(executor, [runner])[0] for _ in range(ticks))
        runner.leave(executor)
        found.append((loss, runner.snapshot))
    (many, accumulated), (one, large) = found
    assert many == pytest.approx(one, abs=LOSS_BOUND)
    assert int(accumulated["steps"]) == int(large["steps"]) == 1
    assert difference(accumulated["adapters"], large["adapters"]) <= ADAPTER_BOUND


def test_a_neighbours_poison_and_other_numbers_compile_nothing_and_change_no_bit():
    def run(poison: float, loss: LossType):
        mine, neighbour = make(1, 4, 2, beta=0.1), make(2, 4, 2, loss, beta=0.3)
        neighbour.snapshot["adapters"] = jax.tree.map(
            lambda a: a + np.full_like(a, poison), neighbour.snapshot["adapters"]
        )
        return trained(executor, [mine, neighbour], (0, 1))[0]

    executor = executor_of()
    clean = run(0.0, "hinge")
    compiled = len(executor.programs.stats().done)
    sick = run(np.nan, "orpo")
    assert len(executor.programs.stats().done) == compiled
    assert clean[0].tolist() == sick[0].tolist() and clean[1] == sick[1]
    assert difference(clean[2], sick[2]) == 0.0


def test_a_step_takes_the_memory_that_was_said_of_it():
    executor, shape = make_executor(4, 8, objective=PAIRS), Shape(16, 32, 512)
    kinds = {"dtype": jnp.float32, "remat": Remat("none", scan_layers=True)}
    said = footprint(CONFIG, executor.plan, training=shape, evaluation=shape, **kinds)
    assert said.training == pytest.approx(executor.programs.temp_bytes("train", shape), rel=0.15)


def test_rows_of_a_pair_stay_together_wherever_a_batch_is_cut():
    partner = {id(row): id(PAIR_ROWS[i ^ 1]) for i, row in enumerate(PAIR_ROWS)}

    def whole(rows) -> bool:
        return all(partner[id(one)] == id(other) for one, other in zip(rows[::2], rows[1::2], strict=True))

    stream = make(1, 4, 3).stream
    assert all(whole(stream.effective_batch(step)) for step in range(9))
    for batch in eval_parts([(0, PAIR_ROWS), (1, PAIR_ROWS[:6])], TINY_ROWS, 3, PAIRS):
        assert all(whole(part.rows) for part in batch)
    mesh = Sharding(make_layout({"adapter": 1, "data": 2}, CONFIG), 2, PAIRS)
    parts = mesh.eval_batches([(0, PAIR_ROWS[:10])], TINY_ROWS, 64)[0]
    dealt = mesh.deal(parts)
    assert [len(own[0].rows) for own in dealt] == [6, 4] and all(whole(own[0].rows) for own in dealt)


def test_samples_of_a_number_of_rows_that_no_shape_is_cut_by_are_refused():
    with pytest.raises(ValueError, match="samples of Preference have 3 rows, expected a power of two"):
        StaticPlan(2, 4, {}, TINY_ROWS, accumulates=False, drops=False, objective=replace(PAIRS, group=3))


def test_a_shape_with_room_for_more_rows_has_padding_there():
    parts = [replace(part, weight=0.5) for part in eval_parts([(0, PAIR_ROWS[:4])], TINY_ROWS, 8, PAIRS)[0]]
    rows = replace(TINY_ROWS, texts=3)
    batch = Sharding(None, 1, PAIRS).batch(parts, Shape(4, 32, 64), rows, drops=False)
    assert batch.row_values["weight"].tolist() == [0.5] * 4 + [0.0] * 8
