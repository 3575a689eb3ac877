"""Queues that never were, as a reader of the store would show them."""

import dataclasses

import numpy as np

from altojax.cluster.service.queue.queue_view import AttemptSpan, JobView, QueueView, TenantView

TENANTS = {"research": (2.0, None), "support": (1.0, 6), "students": (1.0, 4)}
NAMES = ("support", "triage", "sql", "maths", "summaries", "reviews", "code", "legal")


def job(name: str, **fields) -> JobView:
    """A task that waits, but for what is given."""
    blank = JobView(
        name=name,
        tenant="research",
        user="ada",
        uid=2000,
        status="waiting",
        attempt=0,
        gpus={},
        width=None,
        widths=(1, 2),
        submitted_s=0.0,
        started_s=None,
        ended_s=None,
        start_s=None,
        end_s=None,
        reason="",
        output_dir="/runs/none",
        journal_dir="/runs/none",
        tasks=(name,),
        trials=8,
        merged_into=None,
        members=(),
    )
    return dataclasses.replace(blank, **fields)


def queue(jobs=(), spans=(), *, now_s=0.0, nodes=None, made_s=1.7e9, **fields) -> QueueView:
    """A queue of these tasks."""
    nodes = {"gpu-1": 8} if nodes is None else nodes
    tenants = dict.fromkeys(job.tenant for job in jobs) or {"research": None}
    blank = QueueView(
        made_s=made_s,
        now_s=now_s,
        nodes=nodes,
        jobs=tuple(jobs),
        spans=tuple(spans),
        tenants=tuple(_tenant(name, jobs, spans, now_s) for name in tenants),
        rule="area",
        makespan_s=None,
        bound_s=None,
        gap=None,
        holder="process 123 on host",
        alive=True,
    )
    return dataclasses.replace(blank, **fields)


def busy(count: int, *, nodes=None, now_s=7000.0, made_s=1.7e9, output_dirs=(), seed=0) -> QueueView:
    """A queue in which some tasks ended, some failed, some run and others wait, listed one after the other onto GPUs.

    Args:
        count: Tasks.
        nodes: Node -> GPUs.
        now_s: Seconds since the queue was made.
        made_s: Epoch of that.
        output_dirs: Of the first tasks that run.
        seed: Of everything drawn.
    """
    random = np.random.default_rng(seed)
    nodes = {"gpu-1": 8} if nodes is None else nodes
    free_s = {(node, gpu): 0.0 for node, gpus in nodes.items() for gpu in range(gpus)}
    folders = list(output_dirs)
    jobs, spans = [], []
    for index in range(count):
        tenant = str(random.choice(list(TENANTS), p=[0.5, 0.3, 0.2]))
        width = int(random.choice([1, 2, 4], p=[0.5, 0.35, 0.15]))
        submitted_s = float(min(index * 40.0 * random.random(), now_s * 0.95))
        node = min(nodes, key=lambda node: sorted(free_s[node, gpu] for gpu in range(nodes[node]))[width - 1])
        chosen = sorted(range(nodes[node]), key=lambda gpu: (free_s[node, gpu], gpu))[:width]
        start_s = max(submitted_s, *(free_s[node, gpu] for gpu in chosen))
        end_s = start_s + float(random.lognormal(7.0, 0.7)) / width
        gpus = {node: tuple(sorted(chosen))}
        free_s.update({(node, gpu): end_s for gpu in chosen})
        name = f"{NAMES[index % len(NAMES)]}-{index + 1}"
        one = job(
            name,
            tenant=tenant,
            widths=(1, 2, 4)[: 1 + index % 3],
            width=width,
            submitted_s=submitted_s,
            start_s=start_s,
            end_s=end_s,
            trials=int(random.choice([8, 12, 24])),
        )
        if start_s > now_s:
            jobs.append(one)
            continue
        failed = end_s <= now_s and random.random() < 0.06
        reason = "out of memory: expected 81 GiB at most, 4 slots of rank 64 need 93 GiB" if failed else ""
        status = "running" if end_s > now_s else "failed" if failed else "ended"
        one = dataclasses.replace(one, started_s=start_s, attempt=1, status=status, reason=reason)
        if status == "running":
            folder = folders.pop(0) if folders else "/runs/none"
            one = dataclasses.replace(one, gpus=gpus, journal_dir=str(folder), tasks=("reviews", "sql", "math"))
        else:
            one = dataclasses.replace(one, ended_s=end_s)
        spans.append(AttemptSpan(name, 1, tenant, gpus, start_s, None if status == "running" else end_s, status))
        jobs.append(one)
    last_s = max(free_s.values()) - now_s
    return queue(
        jobs,
        spans,
        now_s=now_s,
        nodes=nodes,
        made_s=made_s,
        makespan_s=last_s,
        bound_s=last_s / 1.017,
        gap=0.017,
        tenants=tuple(_tenant(name, jobs, spans, now_s) for name in TENANTS),
    )


class Told:
    """A source that tells whatever queue it holds."""

    def __init__(self, snapshot: QueueView) -> None:
        self.now = snapshot
        self.asked = 0

    def snapshot(self) -> QueueView:
        self.asked += 1
        return self.now


def _tenant(name, jobs, spans, now_s) -> TenantView:
    weight, quota = TENANTS.get(name, (1.0, None))
    own = [job for job in jobs if job.tenant == name]
    used_s = sum(
        ((now_s if span.end_s is None else span.end_s) - span.start_s) * sum(map(len, span.gpus.values()))
        for span in spans
        if span.tenant == name
    )
    return TenantView(
        name=name,
        weight=weight,
        quota=quota,
        gpus=sum(len(gpus) for job in own for gpus in job.gpus.values()),
        gpu_s=used_s,
        waiting=sum(job.status == "waiting" for job in own),
        running=sum(job.status == "running" for job in own),
    )
