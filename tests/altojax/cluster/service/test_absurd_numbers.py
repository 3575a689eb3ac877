"""Numbers that no task has, in a submission or in what its run measured, reach no plan and no other tenant."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from queues import LOAD, ScriptedEngine, config_of, finish, orchestrate, statuses, submission, submit

from altojax.cluster.service.queue.store import View
from altojax.cluster.service.speeds import Speeds
from altojax.cluster.task_estimates.speed_profile import BaseWorkload, Profile, workloads_to_json

NUMBERS = (-1, 0, 1e-320, 1e-12, 1e15, 1e300, 10**9, 10**30, float("inf"), float("nan"))


def changed(node, chance: random.Random):
    """A tree with one of its numbers replaced."""
    node = copy.deepcopy(node)
    inner = node
    while True:
        key = chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if isinstance(inner[key], dict | list) and inner[key]:
            inner = inner[key]
            continue
        inner[key] = chance.choice(NUMBERS)
        return node


def test_whatever_a_submission_says_of_itself_the_queue_can_be_read_and_served_again(tmp_path):
    queue = tmp_path / "queue"
    orchestrator = orchestrate(queue, ScriptedEngine({"a": 4}), retries=0)
    orchestrator.turn()
    for number in range(40):
        chance = random.Random(number)
        plain = submission(config_of(tmp_path / f"{number}"), gpus=chance.choice([(1,), (1, 2), (2, 4)]), key="k")
        told = {
            "samples": chance.choice([1e6, 1e6, *NUMBERS]),
            "workloads": json.dumps(changed(json.loads(plain.workloads), chance)),
        }
        submit(queue, replace(plain, **told))
        orchestrator.turn()
    submit(queue, submission(config_of(tmp_path / "honest")))
    finish(orchestrator)
    assert statuses(queue)["sums-41"] == "ended" and "refused" in statuses(queue).values()
    finish(orchestrate(queue, ScriptedEngine({"a": 4})))


def test_durations_too_long_to_be_added_are_refused(tmp_path):
    queue, slow = tmp_path / "queue", workloads_to_json([BaseWorkload("tiny", replace(LOAD, length=10**9), None, 1000)])
    for number in range(3):
        plain = submission(config_of(tmp_path / f"{number}"))
        submit(queue, replace(plain, samples=1.7e308, workloads=slow))
    finish(orchestrate(queue, ScriptedEngine({"a": 1})))
    assert set(statuses(queue).values()) == {"refused"}
    view = View.read(queue)
    assert view.records()
    view.close()


@pytest.mark.parametrize("device", ["cpu", "a GPU that there is not"])
@pytest.mark.parametrize("mean_s", [1e-300, 1e300, 2.0])
def test_what_one_tenants_run_claims_to_have_measured_says_nothing_of_anothers(tmp_path, monkeypatch, mean_s, device):
    claimed = Profile(
        base="tiny", length=32, rank=4, device=device, gpus=1, step_s=mean_s, sample_s=mean_s,
        mean_samples=2.0, mean_s=mean_s, predicted_s=1.0, overhead=0.0, setup_s=1.0, most_tokens=1000, samples=100,
    )  # fmt: skip
    monkeypatch.setattr("altojax.cluster.service.speeds.host_device", lambda environment: "cpu")
    monkeypatch.setattr("altojax.cluster.service.speeds.read_profile", lambda run_dir, workloads: claimed)
    known, task = Speeds([]), replace(submission(config_of(tmp_path)), workloads=WORKLOADS)
    before = known.job("sums-1", "ann", 1, task)
    found = known.learn("mallory", Path("/run"), task)
    assert found is not None and known.job("sums-1", "mallory", 2, task).speeds != before.speeds
    again = Speeds([found.model_dump_json()])
    for speeds in (known, again):
        assert speeds.job("sums-1", "ann", 1, task) == before
        assert not speeds.concerns(found, "ann", task) and speeds.concerns(found, "mallory", task)


WORKLOADS = workloads_to_json([BaseWorkload("tiny", LOAD, None, 1000)])
