"""Jobs of a Slurm that is made of files: what is submitted, watched, cancelled, and said of each way a job can end."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from orders import dummy_command, dummy_order, reports_of, wait_for

from altojax.cluster.engines import slurm
from altojax.cluster.engines.attempts import End, raise_fence, write_end
from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.slurm import SlurmEngine
from altojax.cluster.engines.slurm_commands import SlurmOptions
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError

FAKES = {
    "sbatch": """
[ -e "$FAKE/refuses" ] && { cat "$FAKE/refuses" >&2; exit 1; }
echo "$*" >>"$FAKE/sbatch.calls"
cat >"$FAKE/script"
env >"$FAKE/environment"
number=$(($(ls "$FAKE/jobs" | wc -l) + 1))
for flag; do case $flag in --job-name=*) name=${flag#*=} ;; esac; done
echo "$number|PENDING|$name" >"$FAKE/jobs/$number"
echo "$number;cluster"
""",
    "squeue": '[ -e "$FAKE/away" ] && exit 1; echo "$*" >>"$FAKE/squeue.calls"; cat "$FAKE"/jobs/* </dev/null',
    "scancel": 'echo "$*" >>"$FAKE/scancel.calls"',
    "sinfo": '[ -e "$FAKE/away" ] && exit 1; cat "$FAKE/nodes"',
}
NODES = """
a|idle|gpu:h100:4(S:0-1)
b|mixed|gpu:4,gpu:a100:2
c|down*|gpu:4
d|idle*|gpu:4
e|drained|gpu:4
f|allocated|(null)
a|idle|gpu:h100:4(S:0-1)
"""


class Cluster:
    """The files of a Slurm."""

    def __init__(self, folder: Path):
        self.folder = folder

    def jobs(self) -> list[str]:
        return [path.read_text() for path in sorted((self.folder / "jobs").iterdir())]

    def becomes(self, number: int, state: str) -> None:
        path = self.folder / "jobs" / str(number)
        path.write_text("|".join([str(number), state, path.read_text().split("|")[2]]))

    def called(self, program: str) -> list[str]:
        path = self.folder / f"{program}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    (tools / "jobs").mkdir(parents=True)
    for name, text in FAKES.items():
        (tools / name).write_text(f"#!/bin/sh\n{text.strip()}\n")
        (tools / name).chmod(0o755)
    (tools / "nodes").write_text(NODES.lstrip())
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tools))
    (tools / "jobs" / "1").write_text("1|RUNNING|somebody else's | job\n")
    return Cluster(tools)


def make_engine(**options):
    return SlurmEngine(SlurmOptions(**options), command=dummy_command(), grace_s=0.1, pace_s=0.0, settle_s=0.1)


@pytest.fixture
def order(tmp_path):
    return dummy_order(tmp_path / "queue %j" / "a-1", {"a": (0, 1)}, "")


def test_nodes_are_those_that_take_jobs_and_those_that_run_ours(cluster, order):
    engine = make_engine()
    assert engine.nodes() == {"a": 4, "b": 6}
    engine.start(order)
    (cluster.folder / "nodes").write_text("a|draining|gpu:4\nb|draining|gpu:6\n")
    assert engine.nodes() == {"a": 4}
    (cluster.folder / "away").touch()
    assert engine.nodes() == {"a": 4}
    with pytest.raises(UserError, match="sinfo: exit code 1"):
        make_engine()


def test_a_cluster_without_gpus_says_so_or_pretends(cluster):
    (cluster.folder / "nodes").write_text("a|idle|(null)\n")
    with pytest.raises(UserError, match=r"partition big has no node with a GPU.*engine\.gpus_per_node"):
        make_engine(partition="big")
    assert make_engine(gpus_per_node=2).nodes() == {"a": 2}
    (cluster.folder / "sinfo").unlink()
    os.environ["PATH"] = str(cluster.folder)
    with pytest.raises(UserError, match="sinfo: not found, expected Slurm's programs"):
        make_engine()


def test_what_is_submitted(cluster, order):
    engine = make_engine(partition="big", account="us", time_limit="1:00:00", options=("--cpus-per-task=16",))
    engine.start(replace(order, gpus={"a": (0, 1), "b": (2, 3)}))
    [call] = cluster.called("sbatch")
    for flag in (
        "--parsable --job-name=a-1.1.",
        "--dependency=singleton --no-requeue --nodes=2 --nodelist=a,b --ntasks-per-node=1",
        "/queue %%j/a-1/attempt-1.log --open-mode=append",
        "--signal=TERM@300 --partition=big --account=us --time=1:00:00 --gpus-per-node=2 --cpus-per-task=16",
    ):
        assert flag in call
    script = (cluster.folder / "script").read_text()
    assert script.startswith("#!/bin/bash\n") and f"'{order.folder}' 1\n" in script
    assert "JAX_PLATFORMS=cuda\n" in (cluster.folder / "environment").read_text()


def test_the_script_runs_the_worker_on_all_gpus_of_its_node(cluster, order):
    make_engine(gpus_per_node=4).start(order)
    assert "--gpus-per-node" not in cluster.called("sbatch")[0]
    srun = '#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS $JAX_NUM_CPU_DEVICES $1 $2" >"$FAKE/srun.says"\n'
    (cluster.folder / "srun").write_text(srun + 'while [ "$1" != "${1#-}" ]; do shift; done; exec "$@"\n')
    (cluster.folder / "srun").chmod(0o755)
    (order.folder / "does.py").write_text('say("ended", 0)')
    environment = "SLURM_GPUS_ON_NODE=2 JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2"
    assert os.system(f"{environment} bash {cluster.folder}/script") == 0
    assert (cluster.folder / "srun.says").read_text() == "0,1 2 --kill-on-bad-exit=0 --wait=0\n"
    assert (order.folder / "attempt-1.json").exists()


@pytest.mark.parametrize(
    ("state", "says", "outcome", "blame", "reason"),
    [
        ("COMPLETED", End(code=0, outcome="ended"), "ended", "task", ""),
        ("FAILED", End(code=2, outcome="failed", reason="wrong"), "failed", "task", "wrong"),
        ("TIMEOUT", End(code=130, outcome="halted"), "failed", "node", "preempted: saved and stopped"),
        ("PREEMPTED", None, "failed", "node", "Slurm ended its job: PREEMPTED: last words"),
        ("NODE_FAIL", None, "failed", "node", "Slurm ended its job: NODE_FAIL: last words"),
        ("OUT_OF_MEMORY", None, "failed", "task", "Slurm ended its job: OUT_OF_MEMORY: last words"),
        ("gone", None, "failed", "node", "Slurm knows its job no longer"),
    ],
)
def test_each_way_a_job_can_end(cluster, order, state, says, outcome, blame, reason):
    engine = make_engine()
    engine.start(order)
    for unfinished in ("PENDING", "RUNNING", "COMPLETING"):
        cluster.becomes(2, unfinished)
        if unfinished == "COMPLETING" and says is not None:
            write_end(order.folder, 1, says)
        assert engine.poll() == []
    (order.folder / "attempt-1.log").write_text("words\nlast words\n\n")
    if state == "gone":
        (cluster.folder / "jobs" / "2").unlink()
    else:
        cluster.becomes(2, state)
    assert reports_of(engine) == [Report("a-1", 1, outcome, reason, blame)]


def test_a_word_that_arrives_late_is_waited_for(cluster, order):
    engine = make_engine()
    engine.start(order)
    cluster.becomes(2, "COMPLETED")
    assert engine.poll() == []
    write_end(order.folder, 1, End(code=0, outcome="ended"))
    assert engine.poll() == [Report("a-1", 1, "ended")]


def test_a_running_job_is_told_and_then_cancelled_a_waiting_one_is_cancelled(cluster, order):
    engine = make_engine()
    engine.start(order)
    cluster.becomes(2, "RUNNING")
    engine.poll()
    engine.stop("a-1", 1)
    engine.stop("a-1", 1)
    assert cluster.called("scancel") == ["--quiet --signal=TERM 2"]
    wait_for(lambda: engine.poll() == [] and len(cluster.called("scancel")) == 2)
    assert cluster.called("scancel")[1] == "--quiet 2"
    cluster.becomes(2, "CANCELLED")
    [report] = reports_of(engine)
    assert report.outcome == "halted" and "did not save in time" in report.reason

    engine.start(replace(order, attempt=2))
    engine.poll()
    engine.stop("a-1", 2)
    assert cluster.called("scancel")[2:] == ["--quiet 3"]
    cluster.becomes(3, "CANCELLED")
    [report] = reports_of(engine)
    assert (report.outcome, report.attempt) == ("halted", 2) and "resumes from its last checkpoint" in report.reason


def test_a_controller_that_is_away_ends_nothing(cluster, order):
    engine = make_engine()
    engine.start(order)
    (cluster.folder / "jobs" / "2").unlink()
    (cluster.folder / "away").touch()
    assert [engine.poll() for _ in range(3)] == [[], [], []]


def test_what_slurm_refuses_is_said_in_one_line(cluster, order):
    engine = make_engine()
    (cluster.folder / "refuses").write_text("sbatch: error: invalid account\nBatch job submission failed\n")
    engine.start(order)
    engine.start(replace(order, attempt=2, gpus={"a": (0,), "b": (0, 1)}))
    raise_fence(order.folder, 4)
    engine.start(replace(order, attempt=3))
    refused, uneven, old = engine.poll()
    assert (refused.outcome, refused.blame) == ("failed", "node") and "invalid account Batch" in refused.reason
    assert "as many on every node" in uneven.reason
    assert "a newer attempt" in old.reason


def dies_at_second_call():
    """Writes a file, and then ends the orchestrator, after sbatch and before the number of the job is written down."""
    calls = []

    def write(path, text):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_atomic(path, text)

    return write


def test_a_later_engine_takes_over_by_name_and_submits_what_was_never_submitted(cluster, order, tmp_path, monkeypatch):
    first = make_engine()
    first.start(order)
    first.start(order)
    first.close()
    between = dummy_order(tmp_path / "b-2", {"b": (0,)}, "")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(slurm, "write_atomic", dies_at_second_call())
        make_engine().start(between)
    lost = dummy_order(tmp_path / "c-3", {"b": (1,)}, "")
    (lost.folder / "attempt-1.slurm.json").write_text('{"name": "c-3.1.x", "job": null}')
    never = dummy_order(tmp_path / "d-4", {"b": (2,)}, "")
    ended = dummy_order(tmp_path / "e-5", {"b": (3,)}, "")
    write_end(ended.folder, 1, End(code=0, outcome="ended"))

    later = make_engine()
    later.adopt([order, between, lost, never, ended])
    later.start(order)
    later.stop("b-2", 1)
    assert later.poll() == [Report("e-5", 1, "ended")]
    assert cluster.called("scancel") == ["--quiet 3"]
    wait_for(lambda: later.poll() == [] and len(cluster.jobs()) == 5)
    names = [one.split("|")[2].split(".")[0].strip() for one in cluster.jobs()[1:]]
    assert names == ["a-1", "b-2", "d-4", "c-3"]
    for number in range(2, 6):
        cluster.becomes(number, "CANCELLED")
    outcomes = {one.job: one.outcome for one in reports_of(later, 4)}
    assert outcomes == {"a-1": "failed", "b-2": "halted", "c-3": "failed", "d-4": "failed"}


def test_all_jobs_are_asked_about_in_one_call_and_no_more_often_than_stated(cluster, tmp_path):
    engine = SlurmEngine(command=dummy_command(), pace_s=3600.0)
    for number in range(3):
        engine.start(dummy_order(tmp_path / f"a-{number}", {"a": (number,)}, ""))
    for _ in range(5):
        assert engine.poll() == []
    assert cluster.called("squeue") == []
    engine._pace_s = 0.0
    engine.poll()
    assert cluster.called("squeue") == ["--me --noheader --states=all --format=%A|%T|%j"]
