"""Workers on a Ray cluster: a placement group holds the GPUs of an attempt, an actor on each of its nodes the worker.

Ray does not start a gang again when a node dies, and leaves its group standing: we take the group down and report the
attempt, and the scheduler starts the next one elsewhere. Actors and groups are detached from the orchestrator and
named, so a later one finds them. Ray's processes speak to each other in pickles; nothing of ours is read from one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from altojax.cluster.engines.attempts import End, judge, last_line, log_of, read_end, unique_name
from altojax.cluster.engines.engine import Order
from altojax.cluster.engines.local import GRACE_S, WORKER
from altojax.cluster.engines.process import from_outside
from altojax.cluster.engines.ray_actor import Member
from altojax.cluster.engines.visible_gpus import worker_environment
from altojax.cluster.engines.watched import Attempt, WatchedEngine
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError

NAMESPACE = "altojax"
SETTLE_S = 10.0
"""Seconds that a file of another node may take to be seen here."""


@dataclass(kw_only=True)
class _RunningGang(Attempt):
    """An attempt as actors.

    Attributes:
        members: An actor on each of its nodes; the first one's worker leads. None: it is lost.
        questions: What each was last asked, where no answer has come.
        codes: Exit codes of the workers that have ended, by member.
        over_s: When a process of it was last seen to have ended.
    """

    members: list[Any]
    questions: dict[int, Any] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    over_s: float | None = None


class RayEngine(WatchedEngine[_RunningGang]):
    """A Ray cluster. To be used from one thread."""

    name = "ray"
    switches_user = False  # Ray's processes are those of who started the cluster

    def __init__(
        self,
        *,
        address: str = "auto",
        command: Sequence[str] = WORKER,
        cache: Path | None = None,
        grace_s: float = GRACE_S,
        settle_s: float = SETTLE_S,
    ):
        """Joins the cluster.

        Args:
            address: Of the cluster, as `ray.init` takes it.
            command: The worker; a task's folder and the attempt's number come after it. Every node must see it.
            cache: Folder of compiled programs that workers share.
            grace_s: Seconds from a request to stop, or after the end of one of a gang's processes, to the end by force.
            settle_s: Seconds to wait for the word of a worker that is gone.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
        """
        super().__init__()
        try:
            import ray
        except ImportError as error:
            raise UserError("engine ray: Ray is not installed, expected pip install 'altojax[cluster]'") from error
        self._ray: Any = ray
        self._joined = not self._ray.is_initialized()
        if self._joined:
            try:
                self._ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                said = " ".join(str(error).split())
                raise UserError(
                    f"engine.address: no Ray cluster at '{address}' ({said}), expected ray start"
                ) from error
        self._command, self._cache = tuple(command), cache
        self._grace_s, self._settle_s = grace_s, settle_s

    def nodes(self) -> Mapping[str, int]:
        """Nodes with GPUs that live; a node that comes back is another one."""
        found = {_node_of(one): int(one["Resources"].get("GPU", 0)) for one in self._ray.nodes() if one["Alive"]}
        return {name: gpus for name, gpus in found.items() if gpus}

    def close(self) -> None:
        """Leaves the cluster; workers keep running."""
        super().close()
        if self._joined:
            self._ray.shutdown()

    def _find(self, order: Order) -> _RunningGang | None:
        """Finds the actors of an attempt, also of one that has ended: they are to be freed."""
        if not _mark_file(order).exists() and read_end(order.folder, order.attempt) is None:
            return None
        members = [self._actor(f"{unique_name(order)}.{number}") for number in range(len(order.gpus))]
        return _RunningGang(order=order, members=members)

    def _launch(self, order: Order) -> _RunningGang:
        members = self._make(order)
        write_atomic(_mark_file(order), "{}")
        return _RunningGang(order=order, members=members)

    def _tell(self, one: _RunningGang) -> None:
        for member in one.members:
            if member is not None:
                member.stop.remote()

    def _look(self, one: _RunningGang) -> None:
        lost = self._hear(one) or self._press(one)
        if lost or len(one.codes) == len(one.members):
            self._settle(one, lost)

    def _make(self, order: Order) -> list[Any]:
        """Makes the group and its actors; where they exist already, finds them. Waits for none of them."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ids = {_node_of(one): one["NodeID"] for one in self._ray.nodes() if one["Alive"]}
        gone = sorted(order.gpus.keys() - ids.keys())
        if gone or not order.gpus:
            raise UserError(f"given nodes {', '.join(order.gpus)}, expected some of {', '.join(sorted(ids))}")
        group = self._group(order)
        if group is None:
            group = self._ray.util.placement_group(
                [{"GPU": len(indices)} for indices in order.gpus.values()],
                strategy="STRICT_PACK" if len(order.gpus) == 1 else "STRICT_SPREAD",
                name=unique_name(order),
                lifetime="detached",
                bundle_label_selector=[{"ray.io/node-id": ids[node]} for node in order.gpus],
            )
        actor = self._ray.remote(Member)
        members = [
            actor.options(
                name=f"{unique_name(order)}.{number}",
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                num_gpus=len(indices),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            ).remote()
            for number, indices in enumerate(order.gpus.values())
        ]
        # A call waits for what it is given, so nobody has to wait here for the leader to be placed.
        address = members[0].address.remote() if len(members) > 1 else None
        command = [*self._command, str(order.folder), str(order.attempt)]
        for number, member in enumerate(members):
            log = log_of(order.folder, order.attempt, number)
            member.launch.remote(command, self._environment(number, len(members)), str(log), address)
        return members

    def _environment(self, number: int, count: int) -> dict[str, str]:
        """Returns what a worker has beside the environment of Ray on its node."""
        given = {"JAX_PLATFORMS": "cuda"}
        if count > 1:
            given |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
        own = worker_environment(given, self._cache)
        return {name: text for name, text in own.items() if name.startswith(_CARRIED) or name in given}

    def _hear(self, one: _RunningGang) -> str:
        """Takes in what actors have answered and asks again; returns how one was lost, or nothing."""
        from ray.exceptions import ActorUnavailableError, RayActorError

        for number, member in enumerate(one.members):
            if number in one.codes:
                continue
            node = list(one.order.gpus)[number]
            if member is None:
                return f"process {number} on {node} is gone"
            question = one.questions.pop(number, None)
            try:
                if question is not None:
                    ready, _ = self._ray.wait([question], timeout=0)
                    if not ready:
                        one.questions[number] = question
                        continue
                    code = self._ray.get(ready[0])
                    if code is not None:
                        one.codes[number] = code
                        one.over_s = time.monotonic()
                        continue
                one.questions[number] = member.code.remote()
            except ActorUnavailableError:  # for a moment; Ray says so when it is lost
                continue
            except RayActorError:
                return f"process {number} on {node} is gone" if node in self.nodes() else f"node {node} is gone"
        return ""

    def _press(self, one: _RunningGang) -> str:
        """Says that an attempt is to be ended by force: it was asked to stop, or half of it has ended, too long ago."""
        since = min((moment for moment in (one.told_s, one.over_s) if moment is not None), default=None)
        if since is None or len(one.codes) == len(one.members) or time.monotonic() - since <= self._grace_s:
            return ""
        one.forced = one.told_s is not None
        return "its other processes did not end"

    def _settle(self, one: _RunningGang, lost: str) -> None:
        """Reports an attempt of which nothing runs, or of which part is lost and the rest is ended here."""
        order = one.order
        since_s = time.monotonic() - (one.over_s or 0.0)
        if not lost and since_s < self._settle_s and read_end(order.folder, order.attempt) is None:
            return  # what the leader wrote may yet have to come here
        self._kill(one)
        self._over(one, judge(order, told=one.told_s is not None, gone=_gone(one, lost), forced=one.forced))

    def _kill(self, one: _RunningGang) -> None:
        """Ends an attempt's actors, and their workers with them, and gives its GPUs back."""
        for member in one.members:
            if member is not None:
                self._ray.kill(member)
        group = self._group(one.order)
        if group is not None:
            self._ray.util.remove_placement_group(group)

    def _actor(self, name: str) -> Any:
        try:
            return self._ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def _group(self, order: Order) -> Any:
        try:
            return self._ray.util.get_placement_group(unique_name(order))
        except ValueError:
            return None


_CARRIED = ("JAX_", "XLA_", "NCCL_", "HF_", "PYTHON", "TRANSFORMERS_")
"""Beginnings of variables that a worker takes from the orchestrator; the rest is its node's."""


def _gone(one: _RunningGang, lost: str) -> End:
    """Returns the end of a gang whose leader has reported nothing."""
    said = last_line(log_of(one.order.folder, one.order.attempt))
    killed = [f"process {number}" for number, code in sorted(one.codes.items()) if from_outside(code)]
    if lost or killed:
        reason = f"{' and '.join(killed)} killed from outside{f': {said}' if said else ''}" if killed else lost
        return End(code=1, outcome="failed", reason=reason, blame="node")
    return End(code=1, outcome="failed", reason=said or f"exit code {one.codes[0]}")


def _node_of(node: Mapping[str, Any]) -> str:
    """Returns a name that no other node has, which begins as people know it."""
    return f"{node['NodeName']}-{node['NodeID'][:8]}"


def _mark_file(order: Order) -> Path:
    return order.folder / f"attempt-{order.attempt}.ray.json"
