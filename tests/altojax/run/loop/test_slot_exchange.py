"""Adapters of trials that have ended are kept as long as one of them may be the best of its task."""

from types import SimpleNamespace

from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.run.loop.slot_exchange import SlotExchange
from altojax.run.run_times import RunTimes
from altojax.run.snapshots import Snapshots
from altojax.run.trial import Trial, TrialProgress
from jaxlm.data.batching.row_layout import RowGeometry


def test_an_ended_trial_keeps_its_adapter_until_one_that_has_ended_is_better(tmp_path):
    trials = [Trial(i, "t", f"trial-{i}", TrialConfig(), {}, Stream([], 0, 8, 1, 1), 0, 32) for i in range(3)]
    ended, going = (TrialProgress("done", best_loss=loss) for loss in (2.0, 3.0)), TrialProgress("running", 0)
    progress = [*ended, going]
    snapshots = Snapshots(tmp_path)
    for trial in trials:
        snapshots.put("best", trial.full_name, {})
    plan = SimpleNamespace(rows=RowGeometry(128, 16, 8))
    sharding = SimpleNamespace(replicas=1)
    executor = SimpleNamespace(keep=lambda *_: None, clear=lambda _: None, sharding=sharding, plan=plan)
    exchange = SlotExchange(executor, trials, progress, snapshots, RunTimes(), 64, lambda _: {}, best_only=True)

    def held() -> list[str]:
        return [trial.name for trial in trials if snapshots.has("best", trial.full_name)]

    going.best_loss = 1.0
    exchange.take_out([])
    assert held() == ["trial-0", "trial-2"], "the last result of one that goes on may be a worse one"
    going.phase, going.best_loss = "done", 2.5
    exchange.take_out([])
    assert held() == ["trial-0"]


def test_each_new_trial_is_drawn_once_and_the_next_ones_before_they_have_a_slot(tmp_path):
    trials = [Trial(i, "t", f"trial-{i}", TrialConfig(), {}, Stream([], 0, 8, 1, 1), 0, 32) for i in range(6)]
    progress = [TrialProgress("waiting") for _ in trials]
    drawn, put = [], {}

    def draw(trial):
        drawn.append(trial.name)
        return trial.name

    sharding = SimpleNamespace(replicas=1, groups=1, slots=2, group=lambda slot: 0)
    plan = SimpleNamespace(rows=RowGeometry(128, 16, 8))
    executor = SimpleNamespace(sharding=sharding, plan=plan, put=lambda slot, made, _: put.update({slot: made}))
    exchange = SlotExchange(executor, trials, progress, Snapshots(tmp_path), RunTimes(), 1024, draw)
    for _ in range(3):
        exchange.fill()
        inside = {one.slot: trial.name for trial, one in zip(trials, progress, strict=True) if one.slot is not None}
        assert put == inside and len(inside) == 2
        for one in progress:
            if one.slot is not None:
                one.slot, one.phase = None, "done"
    assert sorted(drawn) == [trial.name for trial in trials]


def test_of_trials_at_a_rung_only_as_many_are_parked_as_others_wait_the_worst_first(tmp_path):
    trials = [Trial(i, "t", f"trial-{i}", TrialConfig(), {}, Stream([], 0, 8, 1, 1), 0, 32) for i in range(5)]
    progress = [TrialProgress("rung", slot, best_loss=loss) for slot, loss in enumerate([2.0, 4.0, 3.0])]
    progress += [TrialProgress("waiting"), TrialProgress("waiting")]
    sharding = SimpleNamespace(replicas=1, groups=1, slots=4, group=lambda slot: 0)
    plan = SimpleNamespace(rows=RowGeometry(128, 16, 8))
    kinds = {"take": lambda *_, **__: {}, "put": lambda *_: None, "clear": lambda _: None, "park": lambda *_: None}
    executor = SimpleNamespace(sharding=sharding, plan=plan, **kinds)
    exchange = SlotExchange(executor, trials, progress, Snapshots(tmp_path), RunTimes(), 1024, lambda _: {})
    exchange.fill()
    assert [one.slot is not None for one in progress] == [True, False, True, True, True], "one of four slots was free"
    assert [event.trial for event in exchange.events if event.kind == "park"] == ["trial-1"]
