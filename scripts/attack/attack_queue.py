"""A hostile tenant's day on a queue that two others work with: nobody else may notice.

    python scripts/attack/attack_queue.py [--attacks 200] [--seed 0] [--from 0] [--train]
    python scripts/attack/attack_queue.py --short

Every kind of attack once, then as many as are asked for, drawn from the seed (scripts/attack/queue_attacks.py and
door_attacks.py); `--from N` begins with number N of the same draws. Meanwhile two tenants submit, pause and resume
tasks. At the end all of these must have ended with what is theirs, nothing of anybody else may have been read or
changed, and the orchestrator must still serve, and serve again after a restart. A table says what became of the
attacks; what the attacker's own side could not even send counts as tried only. Exit code 1, and what is wrong, if
anything is.

As root, each takes part as an OS user of its own, for which accounts of this host are borrowed, and workers run as who
submitted; otherwise what needs that is not tried, and said. Workers hash their data in place of training, but with
`--train`, for which those users must be able to run this Python.
"""

from jaxrun.process.script import run_script

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import queue_attacks
from attack_stage import ANSWER_S, Stage, Unanswered, User, stage

from jaxrun.config.script_options import ScriptOptions
from jaxrun.terminal.tables import print_table

EVERY = 10
"""Attacks from one honest task of each tenant to the next."""
_LONGEST = 600
"""Characters of a reason."""


@dataclass
class Day:
    """What happened.

    Attributes:
        stage: Where.
        tasks: Kind of an attack -> tasks that came of it.
        tried: Kind -> attacks.
        work: Name of an honest task -> whose, and its run's folder.
        waits_s: Seconds until honest submissions were answered.
        wrong: What must not be.
    """

    stage: Stage
    tasks: dict[str, list[str]] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    work: dict[str, tuple[User, Path]] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def attack(self, number: int, kind: str, chance: random.Random) -> bool:
        """Attacks once; returns whether the queue is still served."""
        before = len(self.stage.submitted)
        try:
            queue_attacks.KINDS[kind](self.stage, chance)
        except Exception as error:  # the attack is at fault, not the queue
            self.wrong.append(f"attack {number} ({kind}) could not be tried: {type(error).__name__}: {error}")
        self.tried[kind] += 1
        self.tasks.setdefault(kind, []).extend(self.stage.submitted[before:])
        if not self.stage.alive:
            self.wrong.append(f"attack {number} ({kind}): serve ended: {self.stage.log()[-2000:]}")
        return self.stage.alive

    def work_on(self, user: User, *, rest: bool = False) -> None:
        """Submits an honest task, and lets it rest for a moment if asked to."""
        config = self.stage.config(user)
        begun_s = time.monotonic()
        try:
            name, refused = self.stage.submit(user, self.stage.submission(config))
        except Unanswered as error:
            self.wrong.append(f"{error}: {self.stage.stuck()}")
            return
        if refused:
            self.wrong.append(f"a task of {user.name} was refused: {refused}")
            return
        self.waits_s.append(time.monotonic() - begun_s)
        self.work[name] = user, Path(config["output_dir"])
        if rest:
            for wish in ("pause", "resume"):
                self.stage.wish(user, name, wish)  # which is refused where it is over already

    def check(self) -> None:
        """Looks for everything that must not be."""
        self._check_work()
        before, after = self.stage.before, self.stage.fingerprints()
        self.wrong += [
            f"{path}: was {before.get(path, 'not there')}, is {after.get(path, 'gone')}"
            for path in sorted(before.keys() | after.keys())
            if before.get(path) != after.get(path)
        ]
        if self.stage.victim.poll() is not None:
            self.wrong.append("a process of another's was killed")
        self.wrong += self._leaks()
        for job in self.stage.snapshot().jobs:
            if len(job.reason) > _LONGEST or not job.reason.isprintable():
                self.wrong.append(f"{job.name}: its reason is not one clean line: {job.reason[:200]!r}")
        log = self.stage.log()
        if "Traceback" in log:
            self.wrong.append(f"serve printed a traceback: {log[log.index('Traceback') :][:2000]}")
        if "\x1b" in log.replace("\x1b[K", ""):
            self.wrong.append("serve printed escape characters")

    def _check_work(self) -> None:
        jobs = self.stage.jobs()
        for name, (user, run) in self.work.items():
            status = jobs[name].status
            if status != "ended":
                self.wrong.append(f"{name} of {user.name}: {status}: {jobs[name].reason}, expected ended")
            elif not self.stage.train:
                expected = hashlib.md5(user.rows.read_bytes()).hexdigest()
                if not (run / "digest").read_text().startswith(expected):
                    self.wrong.append(f"{name} of {user.name}: not made from {user.rows}")
            if status == "ended" and self.stage.apart and run.stat().st_uid != user.uid:
                self.wrong.append(f"{name} of {user.name}: its folder belongs to user {run.stat().st_uid}")

    def _leaks(self) -> Iterator[str]:
        """Words of others in what the attacker has, was told, or may read."""
        stage, mallory = self.stage, self.stage.mallory
        words = {user.word.encode(): user.name for user in (stage.operator, *stage.honest)}
        told = {"what it was told": b"\n".join(stage.heard) if stage.apart else b""}
        jobs = [job for job in stage.snapshot().jobs if job.tenant == "mallory"]
        told |= {f"the reason of {job.name}": job.reason.encode() for job in jobs}
        own = [path for path in mallory.home.rglob("*") if path.is_file() and not path.is_symlink()]
        told |= {str(path): path.read_bytes() for path in own if path.stat().st_uid == mallory.uid}
        told |= {str(path): path.read_bytes() for path in stage.readable_in_queue(mallory)}
        for where, text in told.items():
            yield from (f"a secret of {name} is in {where}" for word, name in words.items() if word in text)

    def table(self) -> None:
        """Prints what became of the attacks."""
        jobs, rows = self.stage.jobs(), []
        for kind, count in self.tried.items():
            fates = Counter(jobs[name].status if name in jobs else name for name in self.tasks[kind])
            counted = [fates.pop(fate, 0) for fate in ("refused", "failed", "cancelled", "ended")]
            rows.append((kind, *map(str, (count, *counted, sum(fates.values())))))
        print_table(("attack", "tried", "refused", "failed", "cancelled", "ended", "rests"), rows, right=range(1, 7))


def main() -> int:
    """Runs the day and says how it went."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--attacks", type=int, default=200, help="random ones, after one of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first attack")
    parser.add_argument("--train", action="store_true", help="train for real, a tiny model")
    parser.add_argument("--short", action="store_true", help="a few seconds, for every change: one of each kind")
    options = parser.read()
    with (
        tempfile.TemporaryDirectory(prefix="attack_queue.") as folder,
        stage(Path(folder), train=options.train) as made,
    ):
        if not made.apart:
            print(f"attack_queue: not root, so all are one OS user; not tried: {', '.join(queue_attacks.APART)}")
        return run(Day(made), options)


def run(day: Day, options: argparse.Namespace) -> int:
    """Serves, attacks, works, restarts and checks."""
    begun_s = time.monotonic()
    kinds = queue_attacks.kinds_of(day.stage, short=options.short)
    last = len(kinds) + (0 if options.short else options.attacks)
    day.stage.serve()
    for user in day.stage.honest:
        day.work_on(user)
    chances = [(number, random.Random(f"{options.seed}:{number}")) for number in range(options.first, last)]
    for number, chance in chances:
        if not day.attack(number, queue_attacks.kind_of(number, kinds, chance), chance):
            break
        if number % EVERY == 0:
            for user in day.stage.honest:
                day.work_on(user, rest=number % (3 * EVERY) == 0)
    if day.stage.alive:
        settle(day)
    if day.stage.alive and not options.short:
        restart(day)
    day.check()
    day.table()
    longest_s = max(day.waits_s, default=0.0)
    print(f"{len(day.work)} honest tasks, the longest wait for an answer {longest_s:.1f} s; seed {options.seed}, "
          f"{sum(day.tried.values())} attacks, {time.monotonic() - begun_s:.0f} s")  # fmt: skip
    for line in day.wrong[:30]:
        print(f"attack_queue: {line}", file=sys.stderr)
    print("nobody else noticed" if not day.wrong else f"{len(day.wrong)} things are wrong")
    return 1 if day.wrong else 0


def restart(day: Day) -> None:
    """Serves anew what is there, and works once more."""
    if (code := day.stage.stop()) != 130:
        day.wrong.append(f"serve ended with {code} when it was told to stop")
    day.stage.serve()
    for user in day.stage.honest:
        day.work_on(user)
    settle(day)


def settle(day: Day) -> None:
    """Waits for the honest tasks, and drops what is left of the attacker's."""
    deadline = time.monotonic() + 5 * ANSWER_S
    while open_work(day) and day.stage.alive and time.monotonic() < deadline:
        time.sleep(0.2)
    day.stage.drop(day.stage.mallory)
    if rest := day.stage.until_over(ANSWER_S):
        day.wrong.append(f"not over: {', '.join(f'{job.name} {job.status}' for job in rest[:10])}")


def open_work(day: Day) -> list[str]:
    """Returns honest tasks that have not ended."""
    jobs = day.stage.jobs()
    return [name for name in day.work if jobs[name].status in ("waiting", "running", "stopping", "merged", "submitted")]


if __name__ == "__main__":
    sys.exit(run_script(main))
