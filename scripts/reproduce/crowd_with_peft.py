"""Speed of PEFT and the Trainer where several processes share one GPU: the crowd of reproduce_alto.py.

    python scripts/reproduce/crowd_with_peft.py JOB.json OUT.json

The job names a model folder, files of rows by data set, and configurations as those of tune_with_peft.py, whose
training this is:

    {"model": FOLDER, "rows": {NAME: ROWS.json}, "configurations": [...], "processes": [1, 2, 4, ...], "seconds": 4.0,
     "liger": false}

For each number of processes, so many train at once, all of them one configuration of one data set at a time, each
beginning elsewhere in its rows. When all have taken a few steps, the steps of the next `seconds` are counted. Cores are
shared out, and so are the rows that are evaluated at once; the GPU shares itself out, by time unless NVIDIA's MPS runs.

OUT.json has `imports_s`, of the process that was ready first, and for each number of processes and data set `setup_s`
(base, adapter and Trainer), `evaluation_s` (all validation rows once) and, by batch size, `step_s`: seconds of a step
of one process while all of them train. Beside it are the steps counted, the share of the time in which the GPU
computed, and the cores that a process kept busy. What OUT.json has already is not measured again.
"""

from jaxrun.process.script import run_script

import json
import math
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_share import BusyShare
from tune_with_peft import (
    BEGUN,
    EVALUATION_ROWS,
    TrainerCallback,
    adapted,
    now,
    set_seed,
    torch,
    training_of,
    write,
)

from jaxrun.config.script_options import ScriptOptions

WARM = 4
"""Steps of each process before any is timed: memory is allocated and kernels are chosen."""
ENDLESS = 1_000_000
PATIENCE_S = 180.0


class Window(TrainerCallback):
    """Counts the steps of a stretch of time that all processes begin together."""

    def __init__(self, together: Any, seconds: float):
        """Takes the barrier of all processes and the least length of the stretch."""
        self.together, self.seconds = together, seconds
        self.begun = self.cpu_s = self.length_s = self.cores = 0.0
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Waits for all others after the first steps; ends training when the time is over."""
        if state.global_step == WARM:
            now()
            self.together.wait(PATIENCE_S)
            self.begun, self.cpu_s = now(), time.process_time()
        elif state.global_step > WARM and time.perf_counter() - self.begun >= self.seconds:
            self.length_s = now() - self.begun
            self.cores = (time.process_time() - self.cpu_s) / self.length_s
            self.steps = state.global_step - WARM
            control.should_training_stop = True


def work(index: int, job: dict[str, Any], todo: Any, told: Any, barriers: dict[int, Any], scratch: Path) -> None:
    """Trains whenever it is told of how many processes it is one, until it is told None; tells what it measured."""
    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    told.put({"imports_s": now() - BEGUN})
    make, measure = training_of(job["configurations"][0])
    rows = {name: json.loads(Path(path).read_text(encoding="utf-8")) for name, path in job["rows"].items()}
    while (order := todo.get()) is not None:
        processes, names = order
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
        together = barriers[processes]
        together.wait(PATIENCE_S)
        begun = now()
        set_seed(index)
        model = adapted(job["model"], job["configurations"][0]["rank"], liger=job.get("liger", False))
        setup_s = now() - begun
        for name in names:
            train, first = rows[name]["train"], index * len(rows[name]["train"]) // processes
            turned = train[first:] + train[:first]
            for one in job["configurations"]:
                window = Window(together, job["seconds"])
                begun = now()
                trainer = make(model, {**one, "steps": ENDLESS}, turned, scratch / str(index), window)
                trainer_s = now() - begun
                trainer.train()
                trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else each Trainer wraps it once more
                told.put(
                    {
                        "data": name,
                        "batch_size": one["batch_size"],
                        "setup_s": setup_s + trainer_s,
                        "steps": window.steps,
                        "length_s": window.length_s,
                        "cores": window.cores,
                    }
                )
            together.wait(PATIENCE_S)
            begun = now()
            measure(model, rows[name]["validation"], max(1, EVALUATION_ROWS // processes))
            told.put({"data": name, "evaluation_s": now() - begun})
        del model, trainer
        torch.cuda.empty_cache()


def measured(
    job: dict[str, Any], processes: int, names: list[str], crowd: list[Any], todo: list[Any], told: Any, barrier: Any
) -> Iterator[dict[str, Any]]:
    """Has `processes` of the crowd train on data sets; yields what they measured of each."""
    for one in todo[:processes]:
        one.put((processes, names))
    barrier.wait(PATIENCE_S)
    for name in names:
        steps = []
        for one in job["configurations"]:
            barrier.wait(PATIENCE_S)
            with BusyShare() as busy:
                time.sleep(job["seconds"])
            parts = [_next(told, crowd) for _ in range(processes)]
            assert all(part["batch_size"] == one["batch_size"] for part in parts)
            pace = sum(part["steps"] / part["length_s"] for part in parts)
            steps.append(
                {
                    "batch_size": one["batch_size"],
                    "step_s": processes / pace,
                    "steps": sum(part["steps"] for part in parts),
                    "setup_s": sum(part["setup_s"] for part in parts) / processes,
                    "cores": sum(part["cores"] for part in parts) / processes,
                    "busy": busy.share,
                }
            )
        barrier.wait(PATIENCE_S)
        evaluation_s = sum(_next(told, crowd)["evaluation_s"] for _ in range(processes)) / processes
        setup_s = sum(one.pop("setup_s") for one in steps) / len(steps)
        of_data = {"processes": processes, "data": name, "setup_s": setup_s, "evaluation_s": evaluation_s}
        yield {**of_data, "steps": steps}


def _next(told: Any, crowd: list[Any]) -> dict[str, Any]:
    """Returns what the next process tells, or ends where one of them is gone."""
    while True:
        try:
            return dict(told.get(timeout=1.0))
        except queue.Empty:
            gone = [one.exitcode for one in crowd if one.exitcode is not None]
            if gone:
                raise SystemExit(f"crowd_with_peft: a process ended with {gone[0]}, see above") from None


def main() -> int:
    """Starts as many processes as are ever needed, and has ever other numbers of them train."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.read()
    job, out = json.loads(options.job.read_text(encoding="utf-8")), options.out
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"stages": []}
    done = {(one["processes"], one["data"]) for one in result["stages"]}
    missing = {
        processes: [name for name in job["rows"] if (processes, name) not in done] for processes in job["processes"]
    }
    missing = {processes: names for processes, names in missing.items() if names}
    # CUDA works in no fork; a fork has imported what it needs.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    told, todo = context.Queue(), [context.Queue() for _ in range(max(missing, default=0))]
    barriers = {processes: context.Barrier(processes + 1) for processes in missing}
    crowd = [
        context.Process(target=work, args=(index, job, one, told, barriers, out.parent / "scratch"), daemon=True)
        for index, one in enumerate(todo)
    ]
    for one in crowd:
        one.start()
    result["imports_s"] = min([result.get("imports_s", math.inf), *(_next(told, crowd)["imports_s"] for _ in crowd)])
    result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result["cores"] = os.cpu_count()
    for processes, names in missing.items():
        for stage in measured(job, processes, names, crowd, todo, told, barriers[processes]):
            result["stages"].append(stage)
            write(out, result)
            print(json.dumps(stage), flush=True)
    for one in todo:
        one.put(None)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
