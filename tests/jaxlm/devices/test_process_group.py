"""Members of a process group, and the message where it does not form or loses a process."""

import io
from pathlib import Path

import pytest

from jaxlm.devices.hosts import ALONE, given_by
from jaxlm.devices.native_output import REASON, pass_on
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[3]
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
GLOO = b"[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3\n"
# What the leader has and sends, and facts that only one process sees otherwise.
EXCHANGE = """
import sys
import numpy as np
from jaxlm.devices.hosts import join
from jaxrun.process.errors import UserError

with join("program") as hosts:
    assert hosts.processes == 3
    for size in (0, 4070, 4080, 4090, 9000, 2**24 + 5):
        text = "x" * (size - 1) + chr(0xe9)
        assert hosts.decide(text if hosts.leads else None) == text
    random = np.random.default_rng(0)
    own = [random.standard_normal(shape).astype(np.float32) for shape in ((), (3, 5), (2200, 2000), (7,))]
    tree = {"many": [*own, np.float32([-0.0, np.nan])], "steps": np.int32(2**24 + 1)}
    like = {"many": [np.zeros_like(one) for one in tree["many"]], "steps": np.zeros((), np.int32)}
    got = hosts.broadcast(tree if hosts.leads else None, like)
    for one, other in zip([*tree["many"], tree["steps"]], [*got["many"], got["steps"]], strict=True):
        assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
    hosts.same("facts", ["one", "two"])
    try:
        hosts.same("facts", ["one", "two", "three"] if hosts.process == 2 else ["one", "two"])
    except UserError as error:
        print(error)
    else:
        sys.exit(1)
"""
FATAL = b"F1 client.h:86] Terminating process because the JAX distributed service detected fatal errors.\n"


@pytest.mark.parametrize(
    ("environment", "given"),
    [
        ({}, None),
        (BY_HAND, {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}),
        (BY_HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_the_environment_says_whether_there_is_a_group(environment, given):
    assert given_by(environment) == given


def test_a_number_that_is_none_is_refused():
    with pytest.raises(UserError, match="JAX_PROCESS_ID: given 'first', expected a whole number"):
        given_by(BY_HAND | {"JAX_PROCESS_ID": "first"})


def test_one_process_agrees_with_itself():
    tree = object()
    assert ALONE.leads and ALONE.gather([1]) == [[1]] and ALONE.decide("x") == "x"
    assert ALONE.broadcast(tree, None) is tree
    ALONE.same("facts", ["one"])
    with pytest.raises(UserError, match=r"^wrong$"), ALONE.together():
        raise UserError("wrong")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"W1 slow compile\n" + GLOO, b"W1 slow compile\n"),
        (b"W1 slow compile\n" + GLOO[:12] + GLOO + GLOO[12:] + b"2\n\n", b"W1 slow compile\n"),
        (b"W1 slow\nE1 coordination_service.cc:1] x\n" + FATAL + b"    @ 0x7f\n", b"W1 slow\nlost\n"),
        (REASON + b"closed by peer\n" + FATAL, b"lost (closed by peer)\n"),
        (FATAL + b"RPC: /xla.coordination.CoordinationService/RegisterTask\n", b"not joined\n"),
        (b"E1 coordination_service.cc:1] x\nand more\n", b"E1 coordination_service.cc:1] x\nand more\n"),
    ],
)
def test_a_lost_process_group_is_one_line_and_everything_else_is_passed_on(written, shown):
    out = io.BytesIO()
    pass_on(io.BytesIO(written), out, "not joined", "lost")
    assert out.getvalue() == shown


# Waits two seconds for its group.
IMPATIENT = """
import sys
import jaxlm.devices.hosts as hosts
from twistjax.cli import main

hosts.JOIN_TIMEOUT_S = 2
sys.exit(main())
"""


@pytest.mark.hosts
def test_a_group_that_does_not_come_together_is_one_line_and_exit_code_2(forks, free_port):
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    apart = [
        BY_HAND | {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(process)}
        for process, address in enumerate(addresses)
    ]
    words = ["train", "configs/none.yaml"]
    *ended, half = forks.begin(IMPATIENT, [words] * 3, [ROOT] * 3, *apart, {"JAX_NUM_PROCESSES": "2"}).ended()
    for process, one in enumerate(ended):
        assert one.code == 2 and not one.out
        assert one.err.startswith(f"twistjax: error: process {process} of 2: no process group after 2 s with")
        assert addresses[process] in one.err and len(one.err.splitlines()) == 1
    assert half.code == 2 and len(half.err.splitlines()) == 1
    assert "expected a cluster that JAX detects, or JAX_COORDINATOR_ADDRESS" in half.err


def test_what_the_leader_has_reaches_all_to_the_bit_and_other_facts_are_told(run_together):
    ended = run_together(EXCHANGE, [[]] * 3, [ROOT] * 3)
    assert [one.code for one in ended] == [0] * 3, [one.err for one in ended]
    line = "facts: three where process 0 has nothing, expected the same on every host\n"
    assert [one.out for one in ended] == [f"process 2: {line}", f"process 2: {line}", line]
