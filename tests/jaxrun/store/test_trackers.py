"""Points reach TensorBoard, wandb and trackio under the same names, and a broken tracker never ends a run."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest

from jaxrun.process.errors import UserError
from jaxrun.store.records import Point
from jaxrun.store.trackers import make_trackers, scalars

POINTS = [
    Point("math", 0, 1, 8, 3, "train", 1.5, grad_norm=0.75),
    Point("math", 0, 2, 16, 6, "validation", 1.25),
    Point("code", "b", 1, 4, 6, "train", math.nan),
    Point("code", None, 0, 0, 0, "base", 2.0),
    Point("code", "b", 3, 9, 9, "validation", None),
]


class Recorder:
    """Stands in for a package or a run: remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        def call(*arguments, **keywords):
            self.calls.append((name, arguments, keywords))
            return self

        return call


@pytest.fixture
def install(monkeypatch):
    def install(name: str) -> Recorder:
        module = Recorder()
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


def test_tensorboard_files_hold_the_points(tmp_path):
    (tracker,) = make_trackers(["tensorboard"], "first", tmp_path, {"seed": 1})
    tracker.log([point for point in POINTS if point.split != "base"][:2])
    tracker.log([POINTS[3]])
    tracker.finish()
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        for event in tensorboard_events(path.read_bytes()):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[value.tag] = (event.step, value.simple_value)
    assert found == {
        "math/0/train_loss": (8, 1.5),
        "math/0/grad_norm": (8, 0.75),
        "math/0/validation_loss": (16, 1.25),
        "code/base_loss": (0, 2.0),
    }


def tensorboard_events(data: bytes):
    """Yields the records of an event file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    from tensorboardX.proto.event_pb2 import Event

    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        yield event
        data = data[16 + length :]


def test_wandb_gets_every_point_against_samples(tmp_path, install, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    module = install("wandb")
    (tracker,) = make_trackers(["wandb"], "first", tmp_path, {"seed": 1})
    tracker.log(POINTS)
    tracker.finish()
    name, _, keywords = module.calls[0]
    run_id = keywords["id"]
    assert name == "init"
    given = {"project": "altojax", "name": "first", "dir": str(tmp_path), "config": {"seed": 1}, "resume": "allow"}
    assert keywords == {**given, "id": run_id}
    assert ("define_metric", ("*",), {"step_metric": "samples"}) in module.calls
    logged = [arguments[0] for name, arguments, _ in module.calls if name == "log"]
    assert logged[0] == {"math/0/train_loss": 1.5, "math/0/grad_norm": 0.75, "samples": 8}
    assert logged[1] == {"math/0/validation_loss": 1.25, "samples": 16}
    assert len(logged) == 4 and math.isnan(logged[2]["code/b/train_loss"])
    assert module.calls[-1][0] == "finish"
    make_trackers(["wandb"], "first", tmp_path, {})
    again = [keywords["id"] for name, _, keywords in module.calls if name == "init"]
    assert again == [run_id, run_id], "a resumed run must continue its own curves"


def test_wandb_keeps_the_environments_project(tmp_path, install, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    module = install("wandb")
    make_trackers(["wandb"], "first", tmp_path, {})
    assert module.calls[0][2]["project"] == "mine"


def test_trackio_gets_every_point_at_its_samples(tmp_path, install, monkeypatch):
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    module = install("trackio")
    (tracker,) = make_trackers(["trackio"], "first", tmp_path, {"seed": 1})
    tracker.log(POINTS[:2])
    tracker.finish()
    assert module.calls == [
        ("init", (), {"project": "altojax", "name": "first", "config": {"seed": 1}, "resume": "allow"}),
        ("log", ({"math/0/train_loss": 1.5, "math/0/grad_norm": 0.75},), {"step": 8}),
        ("log", ({"math/0/validation_loss": 1.25},), {"step": 16}),
        ("finish", (), {}),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    with pytest.raises(UserError) as caught:
        make_trackers([name], "first", tmp_path, {})
    assert "expected: pip install 'altojax[track]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_trackers_and_none(tmp_path):
    assert make_trackers(["none"], "first", tmp_path, {}) == []
    assert make_trackers([], "first", tmp_path, {}) == []
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord', .* \(did you mean 'tensorboard'\?\)"):
        make_trackers(["tensorbord"], "first", tmp_path, {})


def test_a_tracker_that_cannot_start_is_one_line_and_the_others_are_closed(tmp_path, install, monkeypatch):
    trackio = install("trackio")

    def init(**keywords):
        raise RuntimeError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"wandb cannot start \(RuntimeError: no API key\)"):
        make_trackers(["trackio", "wandb"], "first", tmp_path, {})
    assert trackio.calls[-1][0] == "finish"


def test_a_tracker_that_fails_is_switched_off_and_says_so_once(tmp_path, install, caplog):
    module = install("trackio")
    (tracker,) = make_trackers(["trackio"], "first", tmp_path, {})

    def log(*arguments, **keywords):
        raise ConnectionError("gone")

    module.log = log
    with caplog.at_level(logging.WARNING):
        tracker.log(POINTS)
        tracker.log(POINTS)
        tracker.finish()
    assert [record.getMessage() for record in caplog.records] == [
        "trackio failed and is switched off: ConnectionError: gone"
    ]
    assert module.calls[-1][0] == "init"


def test_names_leave_out_what_a_point_lacks():
    assert [list(scalars(point)) for point in POINTS[2:]] == [["code/b/train_loss"], ["code/base_loss"], []]
    assert scalars(Point(None, None, 0, 0, 0, "base", 1.0)) == {"base_loss": 1.0}
