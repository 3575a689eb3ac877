"""Attacks of a hostile tenant on a queue: a list by name, and as many more as wanted, drawn from a seed.

An attack is a function of the stage and a source of chance. It returns nothing: what came of it is read off the queue.
What its own side refuses, as `altojax submit` does, counts as tried.
"""

import contextlib
import copy
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import door_attacks
from attack_stage import Stage, Unanswered
from door_attacks import NAMES

from jaxrun.store.journal import Journal
from jaxrun.store.records import Event

Attack = Callable[[Stage, random.Random], None]
_LONG = 100_000

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e-320, 1e308, float("inf"), float("nan"), 10**9, 10**30, [], {}, [[]], [1] * 10_000),
    *("", "x" * _LONG, "\x00", "a\x00b", "\x1b[2J\x1b]0;owned\x07", "\u202egnp", "../../../etc", "/dev/zero"),
    *("/proc/self/environ", "~root", "!!python/object/apply:os.system ['true']", "(a+)+$", "{{ 7*7 }}", "1e5", "nan"),
)
"""What is put where something else is expected."""
CODE = ("forks", "deaf", "floods", "lies", "says", "shouts", "fences", "links", "pipes", "kills", "empties", "moves")
"""What a worker does whose tenant has its own code run in it."""


def bad_name(stage: Stage, chance: random.Random) -> None:
    """A task with a name that is no name."""
    submit(stage, stage.config(stage.mallory, chance.choice(NAMES)))


def foreign_path(stage: Stage, chance: random.Random) -> None:
    """A key that names what is another's, or no plain file."""
    config = stage.config(stage.mallory)
    data = config["tasks"][0]["data"]
    place = chance.choice(places(stage, chance))
    match chance.randrange(5):
        case 0:
            data["validation"] = place
        case 1:
            config["model"]["model_name_or_path"] = place
        case 2:
            data["chat_template"] = place
        case _:
            data["train"] = place
    submit(stage, config)


def foreign_output(stage: Stage, chance: random.Random) -> None:
    """A run's folder where others, or the queue, have theirs."""
    submit(stage, stage.config(stage.mallory, output_dir=chance.choice(places(stage, chance))))


def places(stage: Stage, chance: random.Random) -> list[str]:
    """Paths that the tenant has no business at, plain and dressed up."""
    victim = chance.choice([stage.ann, stage.bob, stage.operator])
    there = [victim.home, victim.rows, victim.home / "private" / "key", victim.home / "runs", stage.queue,
             stage.queue / "queue.db", stage.queue / "jobs", stage.queue / "serve.json", stage.folder]  # fmt: skip
    path = str(chance.choice(there))
    link = stage.mallory.home / f"link-{chance.randrange(10**9)}"
    pipe = stage.mallory.home / "pipe"

    def dress() -> None:
        link.symlink_to(path)
        if not pipe.exists():
            os.mkfifo(pipe)
        if stage.apart:  # where all are one user, it is that user's to link
            with contextlib.suppress(OSError):
                os.link(path, link.with_name(link.name + "-hard"))

    stage.as_user(stage.mallory, dress)
    home = stage.mallory.home
    around = f"{home}/../{os.path.relpath(path, stage.folder)}"
    return [
        *(path, around, f"{path}/", path.replace("/", "//"), str(link), f"{link}/private/key", f"{link}-hard"),
        *(f"/proc/self/root{path}", f"/proc/{os.getpid()}/cwd", "/dev/zero", "/dev/stdin", str(pipe), "/", ""),
        *("~root/x", "rows.jsonl", "a" * 5000, "/" + "a/" * 3000, f"{home}/x\x00{path}", f"{home}/x\n{path}"),
    ]


def swapped(stage: Stage, chance: random.Random) -> None:
    """A path that is the tenant's own when it is looked at, and a link to another's right after."""
    mallory, victim = stage.mallory, chance.choice([stage.ann, stage.operator])
    own = mallory.home / f"swap-{chance.randrange(10**9)}"
    config = stage.config(mallory, "late")
    if reads := chance.random() < 0.5:
        config["tasks"][0]["data"]["train"] = str(own / "rows.jsonl")
    else:
        config["output_dir"] = str(own / "run")

    def prepare() -> None:
        (own / "run").mkdir(parents=True)
        (own / "rows.jsonl").write_bytes(mallory.rows.read_bytes())

    def swap() -> None:
        if chance.random() < 0.5:  # the last part of the path, or one before it
            (own / "rows.jsonl").unlink()
            (own / "rows.jsonl").symlink_to(victim.rows)
            (own / "run").rename(own / "was")
            (own / "run").symlink_to(victim.home / "private")
        else:
            own.rename(own.with_name(own.name + "-was"))
            own.symlink_to(victim.home if reads else victim.home / "private")

    stage.as_user(mallory, prepare)
    submit(stage, config)
    time.sleep(chance.choice([0.0, 0.1, 0.4]))
    stage.as_user(mallory, swap)


def linked_run(stage: Stage, chance: random.Random) -> None:
    """A run's folder of one's own, in which what a run writes or cleans leads elsewhere."""
    mallory, victim = stage.mallory, chance.choice([stage.ann, stage.operator])
    run = mallory.home / "runs" / f"linked-{chance.randrange(10**9)}"
    name = chance.choice(["journal.lock", "journal.db", "journal.db-wal", "config.yaml", "metrics.jsonl", "sums",
                          "digest", "digest.new", ".tmp-x", ".old-sums", "checkpoints", "report.html"])  # fmt: skip

    def prepare() -> None:
        run.mkdir(parents=True)
        (run / name).symlink_to(victim.home / "private" / chance.choice(["", "key"]))

    stage.as_user(mallory, prepare)
    submit(stage, stage.config(mallory, output_dir=str(run)))


def damaged_run(stage: Stage, chance: random.Random) -> None:
    """A run's folder that holds a run of another program, or a journal with bad bytes in it."""
    run = stage.mallory.home / "runs" / f"damaged-{chance.randrange(10**9)}"

    def prepare() -> None:
        with Journal.open(run, config_text="a: 1\n", identity="x") as journal:
            journal.append(0, [Event("run_start", payload={"device": "?"})])
            journal.commit_checkpoint(1, {"round": 3}, [])
        path = run / "journal.db"
        content = bytearray(path.read_bytes())
        match chance.randrange(5):
            case 0:
                content[chance.randrange(len(content))] ^= 0xFF
            case 1:
                del content[chance.randrange(len(content)) :]
            case 2:
                content = bytearray(chance.randbytes(4096))
            case 3:
                path.unlink()
                os.mkfifo(path)
                return
            case _:
                return
        path.write_bytes(content)

    stage.as_user(stage.mallory, prepare)
    submit(stage, stage.config(stage.mallory, output_dir=str(run)))


def huge_numbers(stage: Stage, chance: random.Random) -> None:
    """A grid of 10^9 and its like, which nobody must try to list."""
    config = stage.config(stage.mallory)
    values = [x / 10_000 for x in range(1, 1001)]
    match chance.randrange(4):
        case 0:
            config["search"] = dict.fromkeys(("learning_rate", "weight_decay", "warmup_ratio"), values)
        case 1:
            config["search"] = {**dict.fromkeys(("learning_rate", "weight_decay", "warmup_ratio"), values), "trials": 8}
        case 2:
            config["search"] = {"lora_rank": 10**9, "train_samples": 10**18, "batch_size": 10**12}
        case _:
            config["tasks"] = [{**config["tasks"][0], "name": f"t{n}"} for n in range(20_000)]
    submit(stage, config)


def slow_pattern(stage: Stage, chance: random.Random) -> None:
    """A pattern or a template over which a matcher never ends."""
    config = stage.config(stage.mallory)
    if chance.random() < 0.5:
        config["search"]["target_modules"] = "(.*a)*(.*b)*(.*c)*x$" if chance.random() < 0.5 else "(([a-z._0-9])*)*$x"
    else:
        loop = "{% for a in range(10**9) %}"
        config["tasks"][0]["data"]["chat_template"] = 3 * loop + "x" + 3 * "{% endfor %}"
    submit(stage, config)


def big_request(stage: Stage, chance: random.Random) -> None:
    """A request of many megabytes, or nested many thousand times."""
    config = stage.config(stage.mallory)
    if chance.random() < 0.5:
        config["tasks"][0]["data"]["train"] = "x" * 40_000_000
    else:
        config["tasks"][0]["data"]["x"] = json.loads("[" * 900 + "]" * 900)
    submit(stage, config)


def another_field(stage: Stage, chance: random.Random) -> None:
    """A request in which a number or a text that the queue counts with is not one."""
    name = chance.choice(["gpus", "trials", "samples", "workloads", "key", "tasks", "output_dir", "config"])
    value = chance.choice(VALUES)
    if name in ("gpus", "tasks") and not isinstance(value, list):
        value = [value]
    with contextlib.suppress(TypeError):
        value = tuple(value) if isinstance(value, list) else value
    submit(stage, stage.config(stage.mallory), **{name: value})


def another_value(stage: Stage, chance: random.Random) -> None:
    """A config in which some value is none that belongs there."""
    config = copy.deepcopy(stage.config(stage.mallory))
    node: Any = config
    while True:
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        node[key] = chance.choice(VALUES)
        break
    submit(stage, config, output_dir=config.get("output_dir"), tasks=("sums",))


def trusted_code(stage: Stage, chance: random.Random) -> None:
    """Code of one's own, as a model is allowed to bring, where the operator has not allowed it."""
    config = stage.config(stage.mallory)
    if chance.random() < 0.5:
        config["model"]["trust_remote_code"] = True
    else:
        config["tasks"][0]["model"] = {**config["model"], "trust_remote_code": True}
    submit(stage, config)


def as_another(stage: Stage, chance: random.Random) -> None:
    """A task in the name of another tenant, of none that there is, or of one with a quota of its own making."""
    tenant = chance.choice(
        ["ann", "bob", "freebie", "root", "", "mallory ", "../ann", "ann\x00", "x" * 5000, "\x1b[2J"]
    )
    submit(stage, stage.config(stage.mallory), tenant)


def others_tasks(stage: Stage, chance: random.Random) -> None:
    """A wish about a task that is another's, or none."""
    jobs = [job.name for job in stage.snapshot().jobs if job.tenant != "mallory"]
    name = chance.choice([*jobs, *NAMES])
    with contextlib.suppress(RuntimeError):
        stage.wish(stage.mallory, name, chance.choice(["cancel", "pause", "resume", "drop", ""]))


def own_code(stage: Stage, chance: random.Random, name: str = "") -> None:
    """A task whose worker does what it likes; told to stop after a while."""
    if stage.train:
        return
    job = submit(stage, stage.config(stage.mallory, name or chance.choice(CODE)))
    if job is not None and chance.random() < 0.5:
        time.sleep(chance.choice([0.2, 1.0]))
        with contextlib.suppress(RuntimeError):
            stage.wish(stage.mallory, job, chance.choice(["cancel", "pause"]))


def submit(stage: Stage, config: dict[str, Any], tenant: str | None = None, /, **changed: Any) -> str | None:
    """Submits as the attacker; None where the attacker's own side already fails."""
    try:
        name, refused = stage.submit(stage.mallory, stage.submission(config, **changed), tenant)
    except Unanswered:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None
    stage.submitted.append("refused" if refused else name)
    stage.heard.append(refused.encode())
    return None if refused else name


KINDS: dict[str, Attack] = {
    "bad names": bad_name,
    "data of others": foreign_path,
    "folders of others": foreign_output,
    "swapped paths": swapped,
    "links in a run": linked_run,
    "damaged runs": damaged_run,
    "huge numbers": huge_numbers,
    "slow patterns": slow_pattern,
    "big requests": big_request,
    "wrong fields": another_field,
    "wrong values": another_value,
    "trust_remote_code": trusted_code,
    "names of tenants": as_another,
    "tasks of others": others_tasks,
    "files in the spool": door_attacks.raw_file,
    "floods of requests": door_attacks.flood,
    "junk in the spool": door_attacks.junk,
    "code of its own": own_code,
    "the page": door_attacks.page,
    "floods of the page": door_attacks.page_flood,
    "looking around": door_attacks.look,
}
"""Kind of an attack -> the attack."""
FLOODS = ("big requests", "floods of requests", "junk in the spool", "floods of the page")
"""Kinds of which one is enough."""
SLOW = (*FLOODS, "code of its own")
"""Kinds that take seconds."""


APART = ("swapped paths", "trust_remote_code", "names of tenants", "tasks of others", "files in the spool",
         "floods of requests", "junk in the spool", "code of its own", "looking around")  # fmt: skip
"""Kinds against what keeps OS users apart."""


def kinds_of(stage: Stage, *, short: bool) -> list[str]:
    """Returns the kinds of a day, or of a short one."""
    return [kind for kind in KINDS if not (short and kind in SLOW) and (stage.apart or kind not in APART)]


def kind_of(number: int, kinds: Sequence[str], chance: random.Random) -> str:
    """Returns of what kind the attack of a number is: each once, then drawn."""
    return kinds[number] if number < len(kinds) else chance.choice([kind for kind in kinds if kind not in FLOODS])
