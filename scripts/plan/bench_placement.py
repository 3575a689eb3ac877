"""Measures how far plans of random moldable tasks end above the energy bound, and how long planning takes.

    python scripts/plan/bench_placement.py [--seeds 10] [--exact 4] [--large 10000]

Tasks take 100 s to 10,000 s on their narrowest width, uniform in the logarithm. A share of 1 % to 30 % of that, uniform
in the logarithm too, does not get faster with more GPUs (Amdahl). They run on 1, 2, 4 or 8 GPUs; one in five needs 2 at
least and one in ten 4, for memory. All are there at first, and nothing runs. `--exact` is what CP-SAT may take, in its
deterministic seconds.

Prints one table: the gap to the energy bound over all seeds, mean and worst, of list schedules by their effort, and of
CP-SAT on top, and the seconds of a CPU that a plan took, the median.
"""

from jaxrun.process.script import run_script

import sys
import time
from collections.abc import Iterator

import numpy as np

from altojax.cluster.scheduling.planning.portfolio import plan
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster
from jaxrun.config.script_options import ScriptOptions
from jaxrun.terminal.tables import print_table

WIDTHS = (1, 2, 4, 8)
ONE_NODE = Cluster({"a": 8})
FOUR_NODES = Cluster(dict.fromkeys("abcd", 8))
LARGE = Cluster({f"node{number:03}": 8 for number in range(128)})


def draw(count: int, seed: int) -> list[Job]:
    """Draws tasks as above."""
    random, jobs = np.random.default_rng(seed), []
    for number in range(count):
        duration_s, serial = 10 ** random.uniform(2, 4), 10 ** random.uniform(-2, np.log10(0.3))
        widths = WIDTHS[int(random.choice(3, p=(0.7, 0.2, 0.1))) :]
        speeds = {width: 1 / (serial + (1 - serial) * widths[0] / width) for width in widths}
        jobs.append(Job(f"task{number}", "bench", speeds, float(duration_s)))
    return jobs


def rows(seeds: int, exact_s: float, large: int) -> Iterator[list[str]]:
    """Measures, a row at a time."""
    lists = {"one deadline": {"effort": 0}, "default effort": {}, "10 x the effort": {"effort": 200_000}}
    exact = {f"CP-SAT {exact_s:g}": {"exact_s": exact_s}} if exact_s else {}
    for name, cluster in (("1 x 8", ONE_NODE), ("4 x 8", FOUR_NODES)):
        for way, options in (lists | exact).items():
            yield row(40, name, cluster, way, options, seeds)
    yield row(large, "128 x 8", LARGE, "default effort", {}, seeds=1)


def row(count: int, name: str, cluster: Cluster, way: str, options: dict[str, float], seeds: int) -> list[str]:
    """Plans with every seed."""
    gaps, seconds = [], []
    for seed in range(seeds):
        jobs, begin = draw(count, seed), time.process_time()
        gaps.append(plan(jobs, cluster, **options).gap)
        seconds.append(time.process_time() - begin)
    shares = [f"{share:.2%}" for share in (float(np.mean(gaps)), max(gaps))]
    return [f"{count:,}", name, way, *shares, f"{np.median(seconds):.3g}"]


def main() -> int:
    """Measures and prints the table."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--exact", type=float, default=4.0)
    parser.add_argument("--large", type=int, default=10_000)
    options = parser.read()
    table = list(rows(options.seeds, options.exact, options.large))
    print_table(("tasks", "nodes x GPUs", "plan", "mean gap", "worst", "CPU s"), table, right=(0, 3, 4, 5))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
