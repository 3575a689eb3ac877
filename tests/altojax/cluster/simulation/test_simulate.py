"""Simulations: what they measure, what they read, and what they refuse."""

import json
from pathlib import Path

import pytest

from altojax.cli import main
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.simulation.ablation import ablate
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.gantt_chart import draw
from altojax.cluster.simulation.metrics import hindsight_bound_s
from altojax.cluster.simulation.play import play
from altojax.cluster.simulation.simulate import simulate
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import check_config, load_config
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[4]
QUIET = {"patience_s": None, "moves": False, "merge": False, "cp_sat_s": 0, "effort": 200}


def workload(**keys: object) -> Workload:
    return check_config(Workload, {"cluster": 2, "policy": QUIET, **keys}, "test")


def played(one: Workload, policy: str = "portfolio"):
    tasks = arrivals(one, Path())
    bound_s = hindsight_bound_s(tasks, Cluster(dict(one.cluster)))
    return play(one, tasks, one.policy.model_copy(update={"plan": policy}), bound_s)


def test_measures_worked_out_by_hand():
    tasks = [
        {"name": "a", "samples": 100, "speeds": {"1": 1.0}, "setup_s": 10},
        {"name": "b", "samples": 100, "speeds": {"1": 2.0}, "arrival_s": 5, "kept": 0.5},
        {"name": "c", "samples": 60, "speeds": {"2": 2.0}, "arrival_s": 6},
    ]
    got = played(workload(tasks=tasks)).measures
    # a: 0 to 110 on one GPU; b: 5 to 30 on the other, half of what it asked for; c: 110 to 140 on both.
    assert got.makespan_s == 140.0
    assert got.mean_s == pytest.approx((110 + 25 + 134) / 3)
    assert got.utilisation == pytest.approx((100 + 25 + 60) / (2 * 140))
    assert (got.ended, got.gave_up, got.attempts) == (3, 0, 3)
    assert got.bound_s == 110.0  # a's own length; all work, 195 GPU-seconds, would be done by 97.5
    assert got.gap == pytest.approx(140 / 110 - 1)


def test_a_bound_with_hindsight_knows_arrivals():
    tasks = [
        {"name": "a", "samples": 10, "speeds": {"1": 1.0}},
        {"name": "b", "samples": 100, "speeds": {"1": 1.0, "2": 1.6}, "arrival_s": 500},
    ]
    one = workload(tasks=tasks)
    assert hindsight_bound_s(arrivals(one, Path()), Cluster(dict(one.cluster))) == 500 + 100 / 1.6


@pytest.mark.parametrize("policy", ["portfolio", "fifo", "backfill", "lpt", "one_gpu", "one_at_a_time"])
def test_nobody_beats_the_bound_and_nothing_is_lost(policy):
    for seed in range(3):
        random = {"count": 30, "every_s": 300, "kept": [0.3, 1.0], "setup_s": 20, "tenants": {"x": 1, "y": 2}}
        failures = {"node_every_s": 20_000, "task_every_s": 30_000}
        one = workload(cluster="2x8", random=random, seed=seed, noise=0.2, known_after=0.3, failures=failures)
        got = played(one, policy).measures
        assert got.ended + got.gave_up == 30 and got.gave_up <= 2
        assert got.gap >= 0 and 0 < got.utilisation <= 1


def test_what_a_checkpoint_holds_is_not_trained_again():
    tasks = [{"name": "a", "samples": 1000, "speeds": {"1": 1.0}}]
    got = played(workload(cluster=1, tasks=tasks, seed=1, failures={"task_every_s": 250, "checkpoint_s": 50}))
    lost_s = [run.end_s - run.start_s - run.trained_s for run in got.runs if run.outcome == "failed"]
    assert lost_s and all(0 <= lost < 50 + 30 + 1e-6 for lost in lost_s)  # and 30 s to resume
    assert sum(run.trained_s for run in got.runs) == pytest.approx(1000.0) or got.measures.gave_up == 1


def test_the_same_seed_gives_the_same_simulation_and_another_one_does_not():
    random = {"count": 12, "kept": [0.3, 1.0]}
    first, again, other = (played(workload(random=random, seed=seed)) for seed in (1, 1, 2))
    assert (first.runs, first.measures) == (again.runs, again.measures)
    assert first.measures != other.measures


def test_ours_is_within_two_percent_of_the_bound_on_eight_gpus():
    for seed in range(3):
        one = load_config(Workload, ROOT / "configs/simulate/forty.yaml", [f"seed={seed}", "policy.cp_sat_s=0"])
        assert played(one).measures.gap <= 0.02


def test_the_paper_s_ablation_comes_out_as_the_log_says():
    path = ROOT / "configs/simulate/alto-ablation.yaml"
    found = ablate(load_config(Workload, path), path.parent)
    makespans_s = {(one.scheduling, one.batching, one.early_exit): one.makespan_s for one in found}
    assert len(makespans_s) == 8
    everything = makespans_s.pop((True, True, True))
    assert all(everything < makespan_s for makespan_s in makespans_s.values())
    assert makespans_s[False, True, False] / everything == pytest.approx(5.63, abs=0.05)


def test_a_trace_is_a_task_a_line(tmp_path):
    lines = ['{"name": "a", "samples": 10, "speeds": {"1": 1.0, "2": 1.5}, "kept": 0.5}', "", '{"name": "b", "samples": 5, "speeds": {"2": 2.0}, "arrival_s": 3}']  # fmt: skip # noqa: E501
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    (tmp_path / "t.csv").write_text("name,samples,arrival_s,kept,speed_1,speed_2\na,10,,0.5,1.0,1.5\nb,5,3,,,2.0\n")
    found = [arrivals(workload(trace=name), tmp_path) for name in ("t.jsonl", "t.csv")]
    assert found[0] == found[1]
    assert [(one.job.name, one.at_s, one.samples, one.speeds) for one in found[0]] == [
        ("a", 0.0, 5.0, {1: 1.0, 2: 1.5}),
        ("b", 3.0, 5.0, {2: 2.0}),
    ]


WRONG_TRACES = {
    "t.jsonl": {
        '{"name": "a"}': "t.jsonl:1",
        "nonsense": "t.jsonl:1: not valid JSON",
        "[1]": "t.jsonl:1: given a list",
        '{"name": "a", "samples": 1, "speedz": {"1": 1.0}}': "did you mean 'speeds'?",
    },
    "t.csv": {
        "name,samples,speed_1\na,1": "t.csv:2: another number of cells",
        "name,samples,speed_1\na,one,1": "t.csv:2: samples: given 'one'",
        "name,samples,speed_1\na,1,2\na,1,2": "given 'a' twice",
    },
}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [(name, text, said) for name, wrong in WRONG_TRACES.items() for text, said in wrong.items()],
)
def test_a_wrong_trace_is_one_line_that_says_where(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        arrivals(workload(trace=name), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_trace_lies_beside_its_workload(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "t.jsonl").write_text('{"name": "a", "samples": 1, "speeds": {"1": 1.0}}')
    for trace, said in {"../t.jsonl": "inside", "t.txt": ".jsonl or a .csv", "t.jsonl": "is not there"}.items():
        with pytest.raises(UserError, match=said):
            arrivals(workload(trace=trace), tmp_path / "inside")


def test_a_cluster_is_nodes_times_gpus_or_named():
    shapes = {"4x8": [8] * 4, "16": [16], 3: [3]}
    for given, sizes in shapes.items():
        assert list(workload(cluster=given, random={"count": 1}).cluster.values()) == sizes
    for wrong in ("4x", "x8", "fourx8", "0", True, {}):
        with pytest.raises(UserError, match="cluster"):
            workload(cluster=wrong, random={"count": 1})
    with pytest.raises(UserError, match="expected one of tasks, trace and random"):
        workload(random={"count": 1}, trace="t.csv")


def test_the_verb_prints_writes_and_draws(tmp_path, capsys):
    path = tmp_path / "work.yaml"
    path.write_text(
        "cluster: {a: 2}\nrandom: {count: 6, widths: [1, 2], tenants: {x: 1.0, y: 1.0}}\npolicy: {cp_sat_s: 0}\n"
    )
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    assert main(["simulate", str(path), "rivals=[fifo]", f"out={out}", f"plot={plot}", "cluster=1x4"]) == 0
    table = capsys.readouterr().out
    assert "portfolio" in table and "fifo" in table and "above bound" in table
    written = json.loads(out.read_text())
    assert set(written["policies"]) == {"portfolio", "fifo"}
    assert {run["job"] for run in written["runs"]["portfolio"]} == {f"task-{number}" for number in range(1, 7)}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_wrong_input_is_one_line(tmp_path, capsys):
    path = tmp_path / "work.yaml"
    path.write_text("cluster: 2\ntasks: [{name: a, samples: 1, speeds: {'4': 1.0}}]\n")
    for words, said in {
        (): "a: can use 4 GPUs",
        ("plot=x.svg",): "ends in .png",
        ("policy.plan=fifoo",): "fifo",
        ("policy.tenants={default: {quota: 2}}", "cluster=4"): "quota of tenant 'default' is 2",
        ("batching=false", "cluster=4"): "no alone_speeds",
    }.items():
        assert main(["simulate", str(path), *words]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1


def test_a_picture_shows_each_gang_as_one_block_on_each_node():
    tasks = [
        {"name": "wide", "group": "big", "samples": 10, "speeds": {"4": 1.0}},
        {"name": "small", "group": "little", "samples": 10, "speeds": {"1": 1.0}, "arrival_s": 1},
    ]
    one = workload(cluster={"a": 2, "b": 2}, tasks=tasks)
    (got, *_) = simulate(one, arrivals(one, Path()))
    (axes,) = draw(one, arrivals(one, Path()), got).axes
    (blocks,) = axes.collections
    assert len(blocks.get_paths()) == 3  # two of the wide one, which needs both nodes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["big", "little"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
