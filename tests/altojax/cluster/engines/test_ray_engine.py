"""A simulated Ray cluster on this machine: gangs run where the order says, and are ended whole when a node dies."""

import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from orders import ROOT, dummy_command, dummy_order, reports_of, wait_for

from altojax.cluster.engines.attempts import raise_fence
from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.process import Identity
from altojax.cluster.engines.ray_engine import RayEngine
from jaxrun.process.errors import UserError

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are not ours to mend

SAYS = """
import json
where = {name: os.environ.get(name, "") for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "CUDA_VISIBLE_DEVICES")}
where |= {"address": os.environ.get("JAX_COORDINATOR_ADDRESS", ""), "pid": str(os.getpid())}
write(folder / ("new" + where["JAX_PROCESS_ID"]), json.dumps(where))
os.replace(folder / ("new" + where["JAX_PROCESS_ID"]), folder / ("where" + where["JAX_PROCESS_ID"]))
"""
FOREVER = f"{SAYS}\nwhile True: __import__('time').sleep(0.02)"


@pytest.fixture(scope="module")
def cluster():
    """A head without GPUs and three nodes of two."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install -e '.[cluster]' brings it")
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    for _ in range(3):
        made.add_node(num_cpus=1, num_gpus=2)
    yield made
    ray.shutdown()
    made.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def engine(cluster):
    made = make_engine(cluster)
    wait_for(lambda: made.nodes() and all(count == 2 for count in made.nodes().values()))
    yield made
    made.close()


def make_engine(cluster):
    return RayEngine(address=cluster.address, command=dummy_command(), grace_s=1.0, settle_s=0.5)


def where(order, process=""):
    path = order.folder / f"where{process}"
    wait_for(path.exists)
    return json.loads(path.read_text())


def lives(told):
    return Identity.of(int(told["pid"])) is not None


def free_gpus():
    import ray

    return ray.available_resources().get("GPU", 0)


def test_without_ray_or_a_cluster_there_is_one_line(monkeypatch):
    def init(**_):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(UserError, match=r"engine\.address: no Ray cluster at 'auto' \(nobody there\)"):
        RayEngine()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed, expected pip install 'altojax\[cluster\]'"):
        RayEngine()


def test_a_gang_gets_what_the_order_says_and_gives_it_back(tmp_path, engine):
    nodes = list(engine.nodes())
    order = dummy_order(tmp_path / "a-1", {nodes[1]: (0, 1)}, f'{SAYS}\nsay("ended", 0)')
    engine.start(order)
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "ended")]
    told = where(order)
    assert told["CUDA_VISIBLE_DEVICES"] == "0,1" and not told["address"] and not told["JAX_NUM_PROCESSES"]
    wait_for(lambda: free_gpus() == 6)

    failing = dummy_order(tmp_path / "b-2", {nodes[0]: (1,)}, 'raise ValueError("no such luck")')
    engine.start(failing)
    assert reports_of(engine) == [Report("b-2", 1, "failed", "ValueError: no such luck", "task")]
    missing = RayEngine(command=["/no/such/worker"], settle_s=0.0)
    missing.start(replace(failing, attempt=2))
    assert reports_of(missing) == [
        Report("b-2", 2, "failed", "/no/such/worker: No such file or directory", "task"),
    ]
    raise_fence(order.folder, 3)
    engine.start(replace(order, attempt=2))
    engine.start(dummy_order(tmp_path / "c-3", {"nowhere": (0,)}, ""))
    old, nowhere = engine.poll()
    assert "a newer attempt" in old.reason and "given nodes nowhere, expected some of" in nowhere.reason


def test_a_later_engine_takes_over_and_stops_or_ends_by_force(tmp_path, cluster, engine):
    node = list(engine.nodes())[2]
    order = dummy_order(tmp_path / "a-1", {node: (0,)}, FOREVER)
    stubborn = dummy_order(tmp_path / "b-2", {node: (1,)}, f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}")
    for one in (order, stubborn):
        engine.start(one)
        where(one)
    engine.close()
    later = make_engine(cluster)
    never = dummy_order(tmp_path / "c-3", {next(iter(later.nodes())): (0,)}, 'say("ended", 0)')
    later.adopt([order, stubborn, never])
    later.stop("a-1", 1)
    later.stop("b-2", 1)
    found = {report.job: report for report in reports_of(later, 3)}
    assert found["a-1"] == Report("a-1", 1, "halted") and found["c-3"] == Report("c-3", 1, "ended")
    assert found["b-2"].outcome == "halted" and "killed" in found["b-2"].reason
    wait_for(lambda: not lives(where(stubborn)))  # it goes with its actor
    wait_for(lambda: free_gpus() == 6)


def test_a_gang_that_loses_a_node_is_ended_whole_and_runs_elsewhere(tmp_path, cluster, engine):
    nodes = list(engine.nodes())
    order = dummy_order(tmp_path / "a-1", dict.fromkeys(nodes[:2], (0, 1)), FOREVER)
    engine.start(order)
    leads, follows = where(order, "0"), where(order, "1")
    assert leads["address"] == follows["address"] != "" and leads["JAX_NUM_PROCESSES"] == "2"
    assert (order.folder / "attempt-1.1.log").read_text() == "begun\n"
    [victim] = [node for node in cluster.worker_nodes if node.node_id.startswith(nodes[1].rpartition("-")[2])]
    cluster.remove_node(victim, allow_graceful=False)
    assert reports_of(engine) == [Report("a-1", 1, "failed", f"node {nodes[1]} is gone", "node")]
    wait_for(lambda: not lives(leads))
    assert nodes[1] not in engine.nodes()
    second = replace(order, attempt=2, gpus={nodes[0]: (0, 1), nodes[2]: (0, 1)})
    for name in ("where0", "where1"):
        (order.folder / name).unlink()
    engine.start(second)
    leads, follows = where(order, "0"), where(order, "1")
    os.kill(int(follows["pid"]), 9)  # the other one would notice; this one does not, and is ended after a while
    [report] = reports_of(engine)
    assert report == Report("a-1", 2, "failed", "process 1 killed from outside: begun", "node")
    wait_for(lambda: not lives(leads))
    wait_for(lambda: free_gpus() == 4)
