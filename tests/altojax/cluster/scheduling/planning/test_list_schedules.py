"""List schedules: every task once, no GPU twice, nothing waits that fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moldable import check_places, queues, quick

from altojax.cluster.scheduling.planning.list_schedule import RULES, list_schedule
from altojax.cluster.scheduling.planning.portfolio import PlacedTask
from altojax.cluster.scheduling.planning.problem import Busy
from altojax.cluster.scheduling.resources.nodes import Cluster, Free


@st.composite
def orders(draw):
    jobs, cluster, busy = draw(queues())
    widths = [draw(st.sampled_from([one for one in job.speeds if cluster.holds(one)])) for job in jobs]
    return jobs, cluster, busy, widths, draw(st.permutations(range(len(jobs))))


def schedule(jobs, cluster, busy, widths, order, **more):
    durations_s = [job.duration_s(width) for job, width in zip(jobs, widths, strict=True)]
    return list_schedule(order, widths, durations_s, cluster, busy, **more)


@quick
@given(orders())
def test_every_task_runs_once_for_as_long_as_it_takes_on_gpus_of_its_own(drawn):
    jobs, cluster, busy, widths, _ = drawn
    listed = schedule(*drawn)
    placed = [PlacedTask(*one) for one in zip(jobs, widths, listed.starts_s, listed.ends_s, listed.gpus, strict=True)]
    check_places(placed, cluster, busy)
    assert all(one.end_s == one.start_s + one.job.duration_s(one.width) for one in placed)
    assert listed.end_s == max([0.0, *listed.ends_s, *(one.until_s for one in busy)])


@quick
@given(orders())
def test_no_task_waits_while_it_fits_and_only_those_that_do_not_fit_are_overtaken(drawn):
    _, cluster, busy, widths, order = drawn
    listed = schedule(*drawn)
    starts_s = listed.starts_s
    for now_s in sorted({0.0, *listed.ends_s, *(one.until_s for one in busy)}):
        taken = [one.gpus for one in busy if one.until_s > now_s]
        taken += [listed.gpus[task] for task in order if starts_s[task] < now_s < listed.ends_s[task]]
        free = Free(cluster, taken)
        for task in order:  # in its order, as the rule says
            if starts_s[task] == now_s:
                assert free.has(listed.gpus[task])
                free.claim(listed.gpus[task])
            elif starts_s[task] > now_s:
                assert not free.fits(widths[task])


@quick
@given(orders(), st.floats(0.0, 100.0))
def test_a_limit_only_cuts_what_ends_later(drawn, limit_s):
    whole, cut = schedule(*drawn), schedule(*drawn, limit_s=limit_s)
    assert cut == (whole if whole.end_s <= limit_s or not drawn[0] else None)


def test_rules_order_by_length_work_width_and_keep_equals_in_place():
    widths, durations_s = np.array([1, 4, 2, 1]), np.array([9.0, 3.0, 5.0, 9.0])
    orders = {name: rule(widths, durations_s).tolist() for name, rule in RULES.items()}
    assert orders == {
        "longest first": [0, 3, 2, 1],
        "largest first": [1, 2, 0, 3],
        "widest first": [1, 2, 0, 3],
        "shortest first": [1, 2, 0, 3],
    }


def test_a_gang_that_no_node_holds_is_an_error_and_not_a_loop():
    with pytest.raises(ValueError, match="a gang of 3 GPUs"):
        list_schedule([0], [3], [1.0], Cluster({"a": 2, "b": 2}), [Busy({"a": (0,)}, 5.0)])
