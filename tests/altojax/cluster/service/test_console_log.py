"""The console log counts as people do, and says nothing of what is of no interest to them."""

import pytest

from altojax.cluster.scheduling.records import NodeChanged, Submitted
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.service.console_log import line_of


@pytest.mark.parametrize(("widths", "said"), [([1], "1 GPU"), ([2], "2 GPUs"), ([1, 2, 4], "1, 2, 4 GPUs")])
def test_a_submission_names_the_numbers_of_gpus_that_it_can_use(widths, said):
    job = Job("sums-1", "speech", dict.fromkeys(widths, 1.0), 10.0)
    assert line_of(Submitted(0.0, job)) == f"sums-1 submitted by speech, for {said}"


@pytest.mark.parametrize(("gpus", "said"), [(0, "is gone"), (1, "1 GPU"), (8, "8 GPUs")])
def test_a_node_is_told_with_its_gpus(gpus, said):
    assert line_of(NodeChanged(0.0, "vm", gpus)).removeprefix("node vm").lstrip(": ") == said
