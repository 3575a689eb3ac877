"""Kills tune, twistjax, serve and exports again and again; what they end with must be what nobody killed made.

    python scripts/stress/kill_runs.py [--kills 1000] [--seed 0] [--parts tune twist serve adapter merged ticket]
    python scripts/stress/kill_runs.py --parts tune=5 adapter=100      # so many kills of each

Every process is forked from this one, which has imported everything, and ended by SIGKILL: half of the times before a
change of its files that is drawn at random, half of the times after a random while. Then the same command is started
again, to be killed again or to come to its end. After each kill journals must be readable and an export must be the old
one or the new one as a whole; at the end decisions, losses and the bytes of adapters and exports must be those of the
command left alone, and nothing else may lie there, no temporary name among it. Exit code 1 and the difference if not.
Models are tiny and random. Meant for a CPU, where XLA's bits repeat.
"""

from jaxrun.process.script import run_script

import contextlib
import json
import os
import random
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kill_points import Ending, run_forked

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import digest_of
from jaxrun.process.errors import NothingYet, UserError
from jaxrun.store.journal import Journal
from jaxrun.terminal.tables import print_table

ROOT = Path(__file__).resolve().parents[2]
MOST = 4
"""Kills of one command before it may come to its end."""
LEFT_OVER = (".tmp-", ".old-", "checkpoint-tmp", ".new")
"""Parts of names that only unfinished files and folders have."""

TUNE = {
    "model": {"model_name_or_path": str(ROOT / "configs" / "tiny"), "random_init": True, "dtype": "float32"},
    "slots": 2,
    "eval_samples": 0.25,
    "checkpoint_samples": 0.1,
    "early_exit": {"preset": "eager", "underperforming": {"rank_by": "average"}},
    "search": {
        "configurations": [
            {"lora_rank": 4, "batch_size": 2, "learning_rate": 3e-3, "lora_dropout": 0.1},
            {"lora_rank": 2, "batch_size": 2, "learning_rate": 1e-2},
            {"lora_rank": 4, "batch_size": 1, "learning_rate": 1e-4, "target_modules": ["q_proj", "v_proj"]},
        ],
        "train_samples": 16,
    },
}
TWIST = {
    "model": {"model_name_or_path": str(ROOT / "configs" / "tiny"), "random_init": True},
    "subnetworks": {"workers": 2, "kappa": 0.5, "block": 16},
    "training": {"local_steps": 2, "batch_size": 2, "train_samples": 32, "optimizer_state": "carry"},
    "evaluation": {"every": 2, "tickets": 2},
    "checkpoint_rounds": 1,
}


class Different(Exception):
    """Something is not as it was without kills."""


@dataclass(frozen=True)
class Victim:
    """One command.

    Attributes:
        name: Names it.
        command: Program and words, given the folder that it works in.
        outcome: What it made there, as plain data that must be the same whenever it has come to its end.
        check: Refuses what may not be found there after a kill.
        begin: Makes what is there before the command is first called.
    """

    name: str
    command: Callable[[Path], tuple[str, ...]]
    outcome: Callable[[Path], Any]
    check: Callable[[Path], None]
    begin: Callable[[Path], None] = lambda folder: folder.mkdir(parents=True)


@dataclass
class KillTally:
    """What became of a part: kills by kind, and how often the command came to its end."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: int = 0


def main() -> int:
    """Lets each command end alone once, then kills it until the kills are spent."""
    try:
        return kill_all()
    except Different as difference:
        print(f"kill_runs: {difference}", file=sys.stderr)
        return 1


def kill_all() -> int:
    """What `main` does, but for what it says where something is different."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=list(SHARES), metavar="PART[=KILLS]")
    parser.add_argument("--out", type=Path, default=Path("runs/killed"))
    options = parser.read()
    try:
        kills = kills_of(options.parts, options.kills)
    except ValueError as error:
        parser.error(str(error))
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    os.environ["TMPDIR"] = str(out / "tmp")
    (out / "tmp").mkdir(parents=True)
    import_all()
    write_inputs(out)
    made = {part.name: part for part in parts(out)}
    needed = [name for name in made if {name, *NEEDED_BY.get(name, ())} & kills.keys()]
    alone = {name: leave_alone(made[name], out) for name in needed}
    chance, tallies = random.Random(options.seed), {}
    for name, number in kills.items():
        tallies[name] = kill(made[name], out, number, alone[name], chance)
        print(f"{name}: {tallies[name].kills.total()} kills", flush=True)
    columns = ("command", "kills", "at a change", "after a while", "ends", "changes", "s alone")
    rows = [
        [
            name,
            str(tally.kills.total()),
            str(tally.kills["change"]),
            str(tally.kills["while"]),
            str(tally.ends),
            str(alone[name][1].changes),
            f"{alone[name][1].seconds:.1f}",
        ]
        for name, tally in tallies.items()
    ]
    print_table(columns, rows, right=range(1, 7))
    total = sum(tally.kills.total() for tally in tallies.values())
    print(f"{total} kills (seed {options.seed}): nothing lost, nothing left over, the same bits")
    return 0


def kills_of(given: list[str], total: int) -> dict[str, int]:
    """Returns how often to kill each part: what is said of it, or else its share of the total.

    Raises:
        ValueError: There is no such part, or what is said is no number.
    """
    names = [one.partition("=")[0] for one in given]
    if unknown := [name for name in names if name not in SHARES]:
        raise ValueError(f"--parts: given '{unknown[0]}', expected some of {', '.join(SHARES)}")
    shares = sum(SHARES[name] for name in names)
    return {
        name: int(one.partition("=")[2]) if "=" in one else round(total * SHARES[name] / shares)
        for name, one in zip(names, given, strict=True)
    }


def leave_alone(part: Victim, out: Path) -> tuple[Any, Ending]:
    """Runs a command that nobody kills; returns what it made, and how it ended."""
    folder = out / "alone" / part.name
    part.begin(folder)
    ending = run_part(part, folder, out)
    if ending.code:
        raise Different(f"{part.name}: exit code {ending.code} without any kill, see {out / 'log'}")
    return finished(part, folder, out), ending


def kill(part: Victim, out: Path, kills: int, alone: tuple[Any, Ending], chance: random.Random) -> KillTally:
    """Calls a command until so many of its processes are killed and the last one has come to its end."""
    expected, whole = alone
    tally, folder = KillTally(), out / "killed" / part.name
    while tally.kills.total() < kills:
        shutil.rmtree(folder, ignore_errors=True)
        part.begin(folder)
        for number in range(MOST + 1):
            kind, how = "", dict[str, Any]()
            if number < MOST and tally.kills.total() < kills:
                kind = chance.choice(("change", "while"))
                at, after_s = chance.randint(1, whole.changes), chance.uniform(0, whole.seconds)
                how = {"at": at} if kind == "change" else {"after_s": after_s}
            ending = run_part(part, folder, out, **how)
            where = f"{part.name}, {how or 'not killed'}, kill {tally.kills.total() + 1}"
            if ending.killed:
                tally.kills[kind] += 1
                part.check(folder)
                continue
            if ending.code:
                raise Different(f"{where}: exit code {ending.code}, see {out / 'log'}")
            if (found := finished(part, folder, out)) != expected:
                raise Different(f"{where}: {first_difference(expected, found)} in {folder}")
            tally.ends += 1
            break
    return tally


def run_part(part: Victim, folder: Path, out: Path, **how: Any) -> Ending:
    """Calls a part's command in a process of its own."""
    from altojax.cli import main as altojax
    from twistjax.cli import main as twistjax

    program, *words = part.command(folder)
    (out / "log").unlink(missing_ok=True)
    called = altojax if program == "altojax" else twistjax
    return run_forked(lambda: called(words), folder, log=out / "log", **how)


def finished(part: Victim, folder: Path, out: Path) -> Any:
    """Returns what a command made that has come to its end, once nothing is left over."""
    found = [path for top in (folder, out / "tmp") for path in top.rglob("*")]
    over = [path for path in found if path.is_relative_to(out / "tmp") or any(word in path.name for word in LEFT_OVER)]
    if over:
        raise Different(f"{part.name}: {over[0]} is left over")
    return part.outcome(folder)


def first_difference(one: Any, other: Any, where: str = "") -> str:
    """Says where two outcomes part."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *other]:
            if one.get(key) != other.get(key):
                return first_difference(one.get(key), other.get(key), f"{where}/{key}")
    if isinstance(one, list) and isinstance(other, list):
        for at, (mine, its) in enumerate(zip(one, other, strict=False)):
            if mine != its:
                return first_difference(mine, its, f"{where}[{at}]")
        return f"{where}: {len(other)} entries, not {len(one)}"
    return f"{where}: {other!r}, not {one!r}"


def parts(out: Path) -> list[Victim]:
    """Returns all commands; those that export do so from what the first two made alone."""
    tuned, trained = out / "alone" / "tune" / "run", out / "alone" / "twist" / "run"
    export = ("altojax", "export", str(tuned), "task=sums", "overwrite=true")
    ticket = ("twistjax", "export", str(trained), "kappa=0.5", "ticket=0", "overwrite=true")

    def exported(name: str, words: tuple[str, ...], other: str) -> Victim:
        """An export over an older one, which `other` makes."""
        old, new = out / "alone" / f"old {name}", out / "alone" / name / "out"

        def begin(folder: Path) -> None:
            folder.mkdir(parents=True)
            if not old.exists():
                run_alone(old, (*words, other))
            shutil.copytree(old, folder / "out")

        def run_alone(to: Path, command: tuple[str, ...]) -> None:
            part = Victim(f"old {name}", lambda _: (*command, f"out={to}"), files_of, lambda _: None)
            if run_part(part, to.parent, out).code:
                raise Different(f"{' '.join(command)} failed, see {out / 'log'}")

        def check(folder: Path) -> None:
            if digest_of(folder / "out") not in (digest_of(old), digest_of(new) if new.exists() else None):
                raise Different(f"{name}: {folder / 'out'} is neither the old export nor the new one")

        return Victim(name, lambda folder: (*words, f"out={folder / 'out'}"), files_of, check, begin)

    return [
        Victim("tune", lambda folder: run_of("altojax", "tune", out / "tune0.yaml", folder), made_in, readable_in),
        Victim("twist", lambda folder: run_of("twistjax", "train", out / "twist.yaml", folder), made_in, readable_in),
        Victim("serve", serve_of, served_in, served_readable, lambda folder: begin_queue(folder, out)),
        exported("adapter", export, "trial=trial-2"),
        exported("merged", (*export, "kind=merged"), "dtype=float32"),
        exported("ticket", ticket, "dtype=bfloat16"),
    ]


SHARES = {"tune": 25, "twist": 20, "serve": 15, "adapter": 15, "merged": 10, "ticket": 15}
"""Part -> its share of the kills."""
NEEDED_BY = {"tune": ("adapter", "merged"), "twist": ("ticket",)}


def write_inputs(out: Path) -> None:
    """Writes rows, text and configs."""
    for number in range(2):
        rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b + number)} for a in range(6) for b in range(6)]
        (out / f"sums{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": str(out / f"sums{number}.jsonl"), "validation_samples": 4, "max_length": 32}
        config = TUNE | {"output_dir": "given", "tasks": [{"name": "sums", "data": data}]}
        (out / f"tune{number}.yaml").write_text(json.dumps(config))
    (out / "text.txt").write_text("".join(f"{n} and {n + 1} are {2 * n + 1}, which is more.\n" for n in range(300)))
    data = {"train": str(out / "text.txt"), "max_length": 32, "validation_samples": 4}
    (out / "twist.yaml").write_text(json.dumps(TWIST | {"output_dir": "given", "data": data}))


def run_of(program: str, verb: str, config: Path, folder: Path) -> tuple[str, ...]:
    """Returns the command of a run."""
    return program, verb, str(config), f"output_dir={folder / 'run'}"


def serve_of(folder: Path) -> tuple[str, ...]:
    """Returns the command that serves a queue until it is idle; tasks run in its own process."""
    words = ("engine=here", "page=null", "until_idle=true", "policy.node_retries=1000")
    return "altojax", "serve", f"queue={folder / 'queue'}", *words


def begin_queue(folder: Path, out: Path) -> None:
    """Submits two tasks that share a run."""
    folder.mkdir(parents=True)
    for number in range(2):
        overrides = [f"output_dir={folder / f'run{number}'}"]
        if run_forked(partial(submit, out / f"tune{number}.yaml", overrides, folder), folder, log=out / "log").code:
            raise Different(f"a task cannot be submitted, see {out / 'log'}")


def submit(config: Path, overrides: list[str], folder: Path) -> None:
    """Submits a task without waiting for an answer: nobody serves."""
    from altojax.cluster.service.verbs import submit as verb

    verb.PATIENCE_S = 0.0
    with contextlib.closing(verb.connect(folder / "queue")) as client:
        verb.put(client, str(config), overrides, overwrite=False)


def made_in(folder: Path) -> dict[str, Any]:
    """What a run made, and all that lies in its folder."""
    return outcome(folder / "run") | lying_in(folder / "run")


def outcome(run: Path) -> dict[str, Any]:
    """Decisions, losses to the last bit, and the digest of every adapter's weights."""
    with Journal.read(run) as journal:
        points = [[one.task, one.trial, one.split, one.step, repr(one.loss), repr(one.lr)] for one in journal.points()]
        decisions = journal.decision_log()
    adapters = {str(path.relative_to(run)): digest_of(path) for path in sorted(run.glob("*/*/adapter_model.*"))}
    return {"decisions": decisions, "losses": points, "adapters": adapters}


def lying_in(run: Path) -> dict[str, Any]:
    """Names of all that lies in a run's folder, checkpoints apart: of these how many are named, and what is not."""
    with Journal.read(run) as journal:
        named = journal.named_folders()
    folders = {str(path.relative_to(run)) for path in (run / "checkpoints").iterdir()}
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {
        "names": [name for name in files if not name.startswith(("checkpoints/", "journal."))],
        "checkpoints": len(named),
        "checkpoints that are not named": sorted(folders - named),
    }


def files_of(folder: Path) -> dict[str, str]:
    """Digests of all files by name, the manifest's too."""
    return {str(path.relative_to(folder)): digest_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def served_in(folder: Path) -> dict[str, Any]:
    """What became of both tasks, and their runs."""
    from altojax.cluster.service.queue.queue_view import Reader

    with contextlib.closing(Reader(folder / "queue")) as reader:
        ended = {job.name: [job.status, job.reason] for job in reader.snapshot().jobs}
    runs = [folder / f"run{number}" for number in range(2)]
    return {"tasks": ended} | {run.name: outcome(run) | lying_in(run) for run in runs}


def readable_in(folder: Path) -> None:
    """Reads all of a run's journal, if it has been made."""
    if not (folder / "run" / "journal.db").exists():
        return
    try:
        outcome(folder / "run")
    except NothingYet:
        return
    except UserError as error:
        raise Different(f"after a kill: {error}") from error


def served_readable(folder: Path) -> None:
    """Reads a queue, and checks that SQLite finds its files sound."""
    for path in (folder / "queue").glob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            if (said := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise Different(f"after a kill: {path}: {said}")


def import_all() -> None:
    """Imports what the commands use, so that their processes have it when they begin; no backend of JAX is started."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    import altojax.report.figures  # noqa: F401
    import twistjax.cli
    import twistjax.tickets.export
    import twistjax.training.trainer  # noqa: F401


if __name__ == "__main__":
    sys.exit(run_script(main))
