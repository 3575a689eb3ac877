"""Calls of Slurm's command-line programs, and parsers of their output."""

import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from jaxrun.config.config import StrictModel
from jaxrun.process.errors import UserError
from jaxrun.untrusted.accounts import Account

_ANSWER_S = 60.0
_TAKES_JOBS = {"idle", "mixed", "allocated", "completing", "planned"}
_STILL_RUNS = _TAKES_JOBS | {"draining", "reserved", "maint"}
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_OWN_FAULT = {"COMPLETED", "FAILED", "OUT_OF_MEMORY"}
_GPUS = re.compile(r"\bgpu(?::[A-Za-z][^:,(]*)?:(\d+)")

_SCRIPT = """#!/bin/bash
set -u
# One process takes all GPUs of its node; JAX would give it one, the first.
gpus=${{SLURM_GPUS_ON_NODE:-0}}
if ((gpus > 1)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# Tasks get the warning from Slurm and stop together: none is killed because another was faster.
exec srun --kill-on-bad-exit=0 --wait=0 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} \\
  ${{SLURM_GPUS_ON_NODE:+--gpu-bind=none}} {command}
"""


class SlurmOptions(StrictModel):
    """Options of every job.

    Attributes:
        partition: Where; null is the default one.
        account: Whom Slurm charges.
        time_limit: Of a job, as Slurm writes it; a task resumes in another one. Null is the partition's.
        warning_s: Seconds before the end of that time at which a job saves and stops.
        options: More flags of sbatch, such as ``--cpus-per-task=16``.
        gpus_per_node: Simulates so many GPUs on each node, as devices of its CPU: for a cluster without any.
    """

    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    warning_s: Annotated[int, pydantic.Field(ge=0, le=65535)] = 300
    options: Annotated[tuple[str, ...], pydantic.Field(strict=False)] = ()  # from a list, as `written_out` leaves it
    gpus_per_node: Annotated[int, pydantic.Field(ge=1)] | None = None


@dataclass(frozen=True)
class JobState:
    """A job's state by Slurm.

    Attributes:
        job: Its number.
        name: Its state, such as ``RUNNING``.
    """

    job: str
    name: str

    @property
    def runs(self) -> bool:
        """Whether it has processes that a signal reaches."""
        return self.name in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING")

    @property
    def over(self) -> bool:
        """Whether nothing of it runs any more or will."""
        return self.name in _OVER

    @property
    def own_fault(self) -> bool:
        """Whether it ended through its own doing."""
        return self.name in _OWN_FAULT


class Slurm:
    """The cluster that sbatch, squeue, scancel and sinfo of this host speak to."""

    def __init__(self, options: SlurmOptions):
        self._options = options

    def nodes(self, ours: Collection[str]) -> Mapping[str, int]:
        """Returns nodes that take jobs, and their GPUs.

        Args:
            ours: Nodes on which something of ours runs: these count for as long as they run it, even if they take no
                more jobs or do not answer at the moment.

        Raises:
            UserError: Slurm does not answer, or has no node with a GPU.
        """
        partition = [f"--partition={self._options.partition}"] if self._options.partition else []
        lines = _ask(["sinfo", "--noheader", "--Node", "--format=%N|%T|%G", *partition]).splitlines()
        found: dict[str, int] = {}
        known = False
        for line in lines:
            node, state, gres = line.split("|")
            count = self._options.gpus_per_node or sum(map(int, _GPUS.findall(gres)))
            known |= count > 0
            base, silent = state.rstrip("*~#!%$@^+-").lower(), "*" in state
            takes = base in _TAKES_JOBS and not silent
            if count and (takes or (node in ours and base in _STILL_RUNS)):
                found[node] = count
        if not known:
            where = f"partition {self._options.partition}" if self._options.partition else "Slurm"
            raise UserError(f"{where} has no node with a GPU, expected one, or engine.gpus_per_node to simulate some")
        return found

    def submit(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        nodes: Sequence[str],
        gpus: int,
        environment: Mapping[str, str],
        account: Account | None = None,
    ) -> str:
        """Submits a job that runs a command on each of its nodes, and returns its number.

        Args:
            name: Names the job.
            command: The command.
            log: Where its output is appended.
            nodes: Its nodes.
            gpus: Of each node.
            environment: All of it.
            account: The user as whom the job runs, which Slurm lets root choose; None is who runs this process.

        Raises:
            UserError: Slurm refuses it.
        """
        options = self._options
        flags = [] if account is None else [f"--uid={account.uid}", f"--gid={account.gid}"]
        flags += [
            f"--job-name={name}",
            "--dependency=singleton",
            "--no-requeue",
            f"--nodes={len(nodes)}",
            f"--nodelist={','.join(nodes)}",
            "--ntasks-per-node=1",
            f"--output={str(log).replace('%', '%%')}",
            "--open-mode=append",
            f"--chdir={log.parent}",
            f"--signal=TERM@{options.warning_s}",
        ]
        for flag, value in (
            ("partition", options.partition),
            ("account", options.account),
            ("time", options.time_limit),
            ("gpus-per-node", None if options.gpus_per_node else gpus),
        ):
            flags += [] if value is None else [f"--{flag}={value}"]
        script = _SCRIPT.format(command=shlex.join(command))
        said = _ask(["sbatch", "--parsable", *flags, *options.options], script, environment)
        return said.strip().split(";")[0]

    def jobs(self, uid: int | None = None) -> dict[str, JobState]:
        """Returns a user's jobs by name: of several with one name the one that is not over, else the latest.

        Args:
            uid: The user; None is who runs this process.

        Raises:
            UserError: Slurm does not answer.
        """
        whose = "--me" if uid is None else f"--user={uid}"
        said = _ask(["squeue", whose, "--noheader", "--states=all", "--format=%A|%T|%j"])
        found: dict[str, list[JobState]] = {}
        for line in said.splitlines():
            job, state, name = line.split("|", 2)
            found.setdefault(name, []).append(JobState(job, state))
        return {name: max(same, key=lambda one: (not one.over, int(one.job))) for name, same in found.items()}

    def cancel(self, job: str, *, signal: str | None) -> None:
        """Sends a signal to what a job runs, or ends it whether it runs or waits; one that is over stays as it is."""
        flags = [] if signal is None else [f"--signal={signal}"]
        try:
            _ask(["scancel", "--quiet", *flags, job])
        except UserError:
            return  # it has just ended; or the controller is away, and the next one ends it by force


def _ask(command: Sequence[str], text: str = "", environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            env=None if environment is None else dict(environment),
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(f"{command[0]}: not found, expected Slurm's programs on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]}: no answer after {_ANSWER_S:.0f} s, expected a controller that works") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{command[0]}: exit code {done.returncode}: {said}")
    return done.stdout
