"""Tasks and clusters to plan, and what every schedule must keep."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

from altojax.cluster.scheduling.planning.problem import Busy
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster

quick = settings(max_examples=30, deadline=None)

speeds = st.dictionaries(st.sampled_from([1, 2, 3, 4, 8, 16]), st.floats(0.1, 10.0), min_size=1, max_size=4)
"""Any: more GPUs may be slower, and there may be gaps."""

clusters = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4).map(
    lambda sizes: Cluster({f"n{number}": size for number, size in enumerate(sizes)})
)


@st.composite
def queues(draw, most=8):
    """Tasks that a cluster holds, the cluster, and what runs on it, as (jobs, cluster, busy)."""
    cluster = draw(clusters)
    drawn = draw(st.lists(st.tuples(speeds, st.floats(1.0, 100.0), st.sampled_from([0.0, 5.0])), max_size=most))
    jobs = [Job(f"t{number}", "us", *one) for number, one in enumerate(drawn)]
    busy = [
        Busy({name: tuple(range(count))}, draw(st.floats(0.0, 50.0)))
        for name, size in cluster.nodes.items()
        if (count := draw(st.integers(0, size)))
    ]
    return [job for job in jobs if any(map(cluster.holds, job.speeds))], cluster, busy


def check_places(placed, cluster, busy=()):
    """No GPU is used twice at a time; a gang is in one node, or has whole nodes of one size."""
    used = defaultdict(list)
    for one in busy:
        for name, indices in one.gpus.items():
            for gpu in indices:
                used[name, gpu].append((float("-inf"), one.until_s))
    for one in placed:
        assert sum(len(set(indices)) for indices in one.gpus.values()) == one.width
        if len(one.gpus) > 1:
            assert one.width > cluster.largest
            assert len({cluster.nodes[name] for name in one.gpus}) == 1
            assert all(len(indices) == cluster.nodes[name] for name, indices in one.gpus.items())
        for name, indices in one.gpus.items():
            for gpu in indices:
                assert 0 <= gpu < cluster.nodes[name]
                used[name, gpu].append((one.start_s, one.end_s))
    for spans in used.values():
        spans.sort()
        assert all(left[1] <= right[0] for left, right in pairwise(spans))
