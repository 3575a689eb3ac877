"""Several tasks as one run, in which each has the config that it would have alone.

What a run draws from its seed and a task's name (`altojax.config.search.configurations`) is drawn before tasks are
renamed, and written down configuration by configuration. All else that a trial depends on is its own, or the same for
all tasks of a family: seed, base, early exit, evaluations, length buckets.
"""

from collections.abc import Mapping
from dataclasses import replace

from altojax.cluster.service.queue.submission import Submission
from altojax.config.search.configurations import configurations
from altojax.config.search.space import SearchSpace
from altojax.config.tune_config import TaskConfig, TuneConfig, model_of
from jaxrun.config.config import dump_config_json


def merged_config(members: Mapping[str, TuneConfig], output_dir: str) -> TuneConfig:
    """Returns the run of several tasks of one family.

    Args:
        members: Name in the queue -> the run that it would be alone; at least one.
        output_dir: The shared run's folder.
    """
    first = next(iter(members.values()))
    tasks = [_renamed(name, config, task) for name, config in members.items() for task in config.tasks]
    update = {"output_dir": output_dir, "model": None, "search": SearchSpace(), "tasks": tasks}
    return first.model_copy(update=update)


def merged_submission(members: Mapping[str, tuple[Submission, TuneConfig]], output_dir: str) -> Submission:
    """Returns a submission that trains the tasks of one family in one run.

    Args:
        members: Name in the queue -> what was submitted, and its run; at least one.
        output_dir: The shared run's folder.
    """
    told = [submission for submission, _ in members.values()]
    config = merged_config({name: alone for name, (_, alone) in members.items()}, output_dir)
    return replace(
        told[0],
        config=dump_config_json(config),
        output_dir=output_dir,
        tasks=tuple(task.name for task in config.tasks),
        gpus=tuple(sorted(set(told[0].gpus).intersection(*(one.gpus for one in told)))),
        trials=sum(one.trials for one in told),
        samples=sum(one.samples for one in told),
    )


def name_in(job: str, task: str) -> str:
    """Returns the name of a member's task in the shared run."""
    return f"{job}.{task}"


def _renamed(job: str, config: TuneConfig, task: TaskConfig) -> TaskConfig:
    space = SearchSpace(configurations=configurations(config, task))
    return TaskConfig(name=name_in(job, task.name), data=task.data, search=space, model=model_of(config, task))
