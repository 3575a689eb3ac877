"""A served queue with an operator, two honest tenants and a hostile one, each an OS user of its own where that can be.

Whatever belongs to one of them holds a word that occurs nowhere else, so that what was read across is found wherever it
went, and is fingerprinted, so that what was written across is.
"""

import contextlib
import hashlib
import io
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Children of other users may not be able to import what is not there yet: the interpreter may be root's alone.
import altojax.run.prepare  # noqa: F401
from altojax.cluster.engines.attempts import read_mark
from altojax.cluster.engines.process import Identity
from altojax.cluster.scheduling.resources.task import OVER
from altojax.cluster.service.queue.client import connect
from altojax.cluster.service.queue.queue_view import JobView, QueueView, Reader
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.submission_builder import SubmitConfig, submission_of
from altojax.cluster.service.verbs import queue_table
from jaxrun.config.config import check_config
from jaxrun.config.verbs import Args
from jaxrun.process.errors import UserError

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny"
ANSWER_S = 60.0
"""Seconds in which the orchestrator must answer."""
_CHILD_S = 60

WORKER = Path(__file__).with_name("attack_worker.sh")
"""In place of training."""


@dataclass(frozen=True)
class User:
    """Who takes part.

    Attributes:
        name: In words; the tenant's name.
        uid: OS user.
        home: A folder of this user's.
        word: Occurs in this user's files and nowhere else.
    """

    name: str
    uid: int
    home: Path
    word: str = field(default_factory=lambda: f"secret-{secrets.token_hex(8)}")

    @property
    def rows(self) -> Path:
        """A data file."""
        return self.home / "rows.jsonl"


class Unanswered(RuntimeError):
    """The orchestrator takes no requests any more."""


class Stage:
    """The queue and those around it.

    Attributes:
        folder: Holds everything.
        apart: Whether each of them is an OS user of its own, which takes root.
        operator: Who serves.
        ann, bob: Who work.
        mallory: Who attacks.
        queue: Folder of the queue.
        submitted: Names of the attacker's tasks.
        heard: What the attacker was told.
    """

    def __init__(self, folder: Path, *, gpus: int = 3, train: bool = False) -> None:
        self.folder, self.queue, self.gpus, self.train = folder, folder / "queue", gpus, train
        self.apart = os.getuid() == 0
        names = ("operator", "ann", "bob", "mallory")
        uids = [0, *other_users(3)] if self.apart else [os.getuid()] * 4
        users = [User(name, uid, folder / name) for name, uid in zip(names, uids, strict=True)]
        self.operator, self.ann, self.bob, self.mallory = users
        self.common = folder / "common"
        self.victim = self._bystander()
        self._make_folders(users)
        self.pattern: dict[str, Any] = self.as_user(self.operator, self._pattern)
        self.before = self.fingerprints()
        self.served: subprocess.Popen[bytes] | None = None
        self.submitted: list[str] = []
        self.heard: list[bytes] = []

    @property
    def honest(self) -> tuple[User, User]:
        """Those whose work must come to its end."""
        return self.ann, self.bob

    def as_user[Answer](self, user: User, call: Callable[[], Answer]) -> Answer:
        """Runs a call in a child of that user's, and returns what it returns as JSON can carry it.

        Raises:
            RuntimeError: It raised, or took too long.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as told:
                try:
                    signal.alarm(_CHILD_S)
                    warnings.simplefilter("ignore")  # pydantic's, of wrong types, which are meant
                    self.become(user)
                    json.dump({"answer": call()}, told)
                except BaseException as error:
                    json.dump({"error": f"{type(error).__name__}: {error}"}, told)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as told:
            text = told.read()
        os.waitpid(child, 0)
        said = json.loads(text) if text else {"error": f"not done after {_CHILD_S} s"}
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["answer"]

    def become(self, user: User) -> None:
        """Makes this process one of that user's, for good."""
        if self.apart:
            os.setgroups([])
            os.setgid(gid_of(user.uid))
            os.setuid(user.uid)
        os.umask(0o077)
        os.chdir("/")
        os.environ["HOME"] = str(user.home)

    def config(self, user: User, name: str = "sums", **changed: Any) -> dict[str, Any]:
        """Returns a task that this user may submit."""
        config = json.loads(self.pattern["config"])
        config["output_dir"] = str(user.home / "runs" / secrets.token_hex(6))
        config["tasks"][0]["name"] = name
        config["tasks"][0]["data"]["train"] = str(user.rows)
        return {**config, **changed}

    def submission(self, config: dict[str, Any], /, **changed: Any) -> Submission:
        """Returns what submits a config, however wrong it is."""
        told = {
            **self.pattern,
            "config": json.dumps(config),
            "output_dir": config["output_dir"],
            "tasks": tuple(task["name"] for task in config["tasks"]),
            "gpus": tuple(self.pattern["gpus"]),
        }
        return Submission(**{**told, **changed})

    def submit(self, user: User, submission: Submission, tenant: str | None = None) -> tuple[str, str]:
        """Submits, past all that `altojax submit` itself would have refused; returns the task's name and why not.

        Raises:
            RuntimeError: It cannot even be sent, or nobody has answered.
        """
        named = user.name if tenant is None and not self.apart else tenant

        def send() -> tuple[str, str] | None:
            with contextlib.closing(connect(self.queue)) as client:
                outcome = client.submit(submission, named, ANSWER_S)
            return (outcome.job, outcome.error) if outcome.taken else None

        answer = self.as_user(user, send)
        if answer is None:
            raise Unanswered(f"nobody answered {user.name}")
        return answer[0], answer[1]

    def wish(self, user: User, job: str, wish: str) -> str:
        """Asks for something as the user's program would; returns why not, in a line, or nothing."""

        def ask() -> str:
            with contextlib.closing(connect(self.queue)) as client:
                return client.ask(job, wish, ANSWER_S).error

        return self.as_user(user, ask)

    def snapshot(self) -> QueueView:
        """Returns the queue as its operator sees it."""
        with contextlib.closing(Reader(self.queue)) as reader:
            return reader.snapshot()

    def jobs(self) -> dict[str, JobView]:
        """Returns all tasks by name."""
        return {job.name: job for job in self.snapshot().jobs}

    def until_over(self, patience_s: float) -> list[JobView]:
        """Waits until all tasks are over; returns those that are not."""
        deadline = time.monotonic() + patience_s
        while True:
            resting = (*OVER, "refused", "paused")
            rest = [job for job in self.snapshot().jobs if job.status not in resting]
            if not rest or time.monotonic() > deadline or not self.alive:
                return rest
            time.sleep(0.3)

    def listed(self, user: User, arguments: list[str]) -> str:
        """Returns what `altojax queue` prints for a user, or why it prints nothing."""
        given = {"task": next((one for one in arguments if one != "--json"), None)}

        def look() -> str:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                queue_table.run(Args(given, (f"queue={self.queue}", f"json={'--json' in arguments}".lower())))
            return out.getvalue()

        try:
            return self.as_user(user, look)
        except RuntimeError as error:
            return str(error)

    def readable_in_queue(self, user: User) -> list[Path]:
        """Returns the files of the queue's folder that a user may open."""

        def readable() -> list[str]:
            files = (Path(top, name) for top, _, names in os.walk(self.queue) for name in names)
            return [str(path) for path in files if path.is_file() and os.access(path, os.R_OK)]

        return [Path(path) for path in self.as_user(user, readable)] if self.apart else []

    def drop(self, user: User) -> None:
        """Cancels, as the operator, what is left of a tenant's tasks."""
        names = [job.name for job in self.snapshot().jobs if job.tenant == user.name and job.status not in OVER]

        def cancel() -> None:
            with contextlib.closing(connect(self.queue)) as client:
                for name in names:
                    client.ask(name, "cancel", 0.0)

        self.as_user(self.operator, cancel)

    @property
    def alive(self) -> bool:
        """Whether the orchestrator runs."""
        return self.served is not None and self.served.poll() is None

    def serve(self) -> None:
        """Begins to serve, and waits until requests are taken.

        Raises:
            RuntimeError: It ended at once.
        """
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "altojax",
            "serve",
            str(self.operator.home / "serve.yaml"),
        ]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        limited = ["sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *command]
        with (self.operator.home / "serve.log").open("ab") as log:
            self.served = subprocess.Popen(limited, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while not (self.queue / "serve.json").exists():
            if not self.alive or time.monotonic() > deadline:
                raise RuntimeError(f"serve does not begin: {self.log()[-500:]}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Stops serving as an operator does; returns the exit code."""
        assert self.served is not None
        self.served.send_signal(signal.SIGTERM)
        return self.served.wait(timeout=120)

    def stuck(self) -> str:
        """Ends an orchestrator that does not answer, and returns where it was."""
        assert self.served is not None
        self.served.send_signal(signal.SIGABRT)
        self.served.wait(timeout=60)
        return self.log()[-4000:]

    def close(self) -> None:
        """Ends everything that was started here."""
        if self.served is not None and self.served.poll() is None:
            self.served.kill()
            self.served.wait()
        self.victim.kill()
        self.victim.wait()
        for path in self.queue.glob("jobs/*/attempt-*.pid.json"):
            with contextlib.suppress(UserError):  # a link or the like in its place
                if (identity := read_mark(path, Identity)) is not None:
                    identity.kill()

    def log(self) -> str:
        """Returns what the orchestrator has printed."""
        return (self.operator.home / "serve.log").read_text(encoding="utf-8", errors="replace")

    @property
    def page(self) -> dict[str, Any]:
        """Address and token of the page."""
        return dict(json.loads((self.queue / "serve.json").read_text()))

    def fingerprints(self) -> dict[str, str]:
        """Returns what must not change: everything that is not the attacker's, runs and the queue itself aside."""
        found = {}
        for user in (self.operator, self.ann, self.bob):
            for path in sorted(user.home.rglob("*")):
                if "runs" in path.relative_to(user.home).parts or path.name == "serve.log":
                    continue
                about = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = f"{about.st_mode:o} {about.st_uid} {content}"
        return found

    def _make_folders(self, users: list[User]) -> None:
        self.folder.chmod(0o711)
        for user in users:
            (user.home / "runs").mkdir(parents=True)
            (user.home / "private").mkdir()
            lines = [{"prompt": f"{n} + 1 is", "completion": f"{n + 1} {user.word}"} for n in range(32)]
            user.rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
            (user.home / "private" / "key").write_text(user.word + "\n")
            (user.home / "private" / "key").chmod(0o600)
        self.common.mkdir()
        self.common.chmod(0o755)
        shutil.copyfile(WORKER, self.common / WORKER.name)  # where everybody may read it
        (self.common / "process.json").write_text(Identity.of(self.victim.pid).model_dump_json())
        self.queue.mkdir()
        (self.operator.home / "serve.yaml").write_text(json.dumps(self._serve_config()))
        for user in users:
            for path in (user.home, *user.home.rglob("*")):
                os.chown(path, user.uid, gid_of(user.uid) if self.apart else -1)
            user.home.chmod(0o700)

    def _serve_config(self) -> dict[str, Any]:
        engine: dict[str, Any] = {"kind": "local", "gpus": self.gpus, "grace_s": 3}
        if not self.train:
            told = self.operator.home / "private" / "key", self.common / "process.json"
            engine["worker"] = ["sh", str(self.common / WORKER.name), *map(str, told)]
        tenants: dict[str, Any] = {
            user.name: {
                "users": [user.uid],
                "roots": {"read": [str(TINY), str(self.common)], "write": [str(user.home)]},
            }
            for user in (self.ann, self.bob, self.mallory)
        }
        tenants["mallory"]["quota"] = 1
        return {
            "queue": str(self.queue),
            "engine": engine,
            "tenants": tenants,
            "policy": {"retries": 1, "node_retries": 1, "patience_s": 5.0},
        }

    def _pattern(self) -> dict[str, Any]:
        config = {
            "output_dir": str(self.folder),
            "model": {"model_name_or_path": str(TINY), "random_init": True, "dtype": "float32"},
            "search": {"lora_rank": 4, "train_samples": 8, "batch_size": 4},
            "tasks": [{"name": "sums", "data": {"train": str(self.ann.rows), "max_length": 64}}],
        }
        return asdict(replace(submission_of(check_config(SubmitConfig, config, "attack_queue")), key=""))

    def _bystander(self) -> subprocess.Popen[bytes]:
        """A process of the first tenant's that has nothing to do with the queue."""
        return subprocess.Popen(["sleep", "86400"], user=self.ann.uid if self.apart else None, start_new_session=True)


def other_users(count: int) -> list[int]:
    """Returns users that are not root, with groups of their own: whoever a task runs as needs an account."""
    found: dict[int, int] = {}
    for account in pwd.getpwall():
        if account.pw_uid and account.pw_gid not in (0, *found.values()):
            found[account.pw_uid] = account.pw_gid
    if len(found) < count:
        raise RuntimeError(f"this host has {len(found)} users beside root, expected {count}")
    return list(found)[:count]


def gid_of(uid: int) -> int:
    """Returns the group of a user."""
    return pwd.getpwuid(uid).pw_gid


@contextlib.contextmanager
def stage(folder: Path, **kept: Any) -> Iterator[Stage]:
    """Makes a stage, and removes it with all that runs on it."""
    made = Stage(folder, **kept)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
