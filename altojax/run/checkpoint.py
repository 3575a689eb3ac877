"""A run at a checkpoint: its trials' progress, and the capacity and shapes of their steps."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from altojax.config.tune_config import TuneConfig
from altojax.device.executor import Executor
from altojax.device.memory import Capacity
from altojax.estimates.step_prices import StepVariant
from altojax.packing.variant_choice import variants_of
from altojax.run.loop.starts import adopt_winners
from altojax.run.prepare import PreparedBase, PreparedRun, kernels_of
from altojax.run.tasks.search import put_back
from altojax.run.trial import TrialProgress
from jaxlm.models.computation import Remat
from jaxrun.store.records import Checkpoint
from jaxrun.store.run_log import CHECKPOINTS


def progress_at(prepared: PreparedRun, checkpoint: Checkpoint | None) -> list[TrialProgress]:
    """Returns the progress of all trials, in their order; those that the checkpoint does not know have not begun.

    Trials that were proposed by then are put back into their places, and those that start from the best of another task
    have its shape, where that has ended.
    """
    known = {} if checkpoint is None else checkpoint.manifest["progress"]
    for base in prepared.bases:
        put_back(base.trials, base.searches, {} if checkpoint is None else checkpoint.manifest.get("proposed", {}))
    trials = [trial for base in prepared.bases for trial in base.trials]
    waits = [trial.proposed or (trial.start is not None and not trial.start.known) for trial in trials]
    new = [TrialProgress(phase="planned" if planned else "waiting") for planned in waits]
    progress = [
        TrialProgress.from_dict(known[trial.full_name]) if trial.full_name in known else one
        for trial, one in zip(trials, new, strict=True)
    ]
    adopt_winners(prepared.bases, progress)
    return progress


def is_done(base: PreparedBase, progress: Sequence[TrialProgress]) -> bool:
    """Whether all trials of a base have ended."""
    return all(progress[trial.index].phase == "done" for trial in base.trials)


def held_by(config: TuneConfig, base: PreparedBase, executor: Executor) -> dict[str, Any]:
    """Returns the facts for which a capacity and the shapes of batches are chosen."""
    plan, spec = executor.plan, base.spec
    return {
        "mesh": executor.sharding.mesh,
        "slots": plan.slots,
        "kernels": plan.kernels,
        "remat": [spec.remat, spec.scan_layers],
        "budget": config.memory_budget,
        "trials": [trial.full_name for trial in base.trials],
    }


def variant_at(checkpoint: Checkpoint | None, base: PreparedBase) -> StepVariant | None:
    """Returns the variant of the training step that a checkpoint of this base goes on with.

    None where there is none, or where the config leaves it open no more.
    """
    if checkpoint is None or checkpoint.manifest["held"]["trials"] != [trial.full_name for trial in base.trials]:
        return None
    saved = checkpoint.manifest.get("variant")
    open_now = variants_of(base.spec, kernels_of(base.spec))
    return next((one for one in open_now if plain_variant(one) == saved), None)


def plain_variant(variant: StepVariant) -> dict[str, Any]:
    """Returns a variant as plain data for a checkpoint's manifest."""
    return {"kernels": variant.kernels, **variant.remat._asdict()}


def resume(
    executor: Executor, checkpoint: Checkpoint | None, held: Mapping[str, Any], budget_bytes: int
) -> Capacity | None:
    """Restores the shapes and the capacity of a checkpoint, where they were chosen for the same facts.

    Args:
        executor: Of the run.
        checkpoint: Where it resumes, if anywhere.
        held: The facts, from `held_by`.
        budget_bytes: Of a device now, which may be a smaller one.
    """
    if checkpoint is None or checkpoint.manifest["held"] != held:
        return None
    capacity = capacity_of(checkpoint.manifest["capacity"])
    if capacity.budget_bytes > budget_bytes:
        return None
    executor.programs.restore(checkpoint.manifest)
    return capacity


def named_in(manifest: Mapping[str, Any], trials: Collection[str]) -> dict[str, dict[str, str]]:
    """Returns the folders that a checkpoint names, by kind and trial.

    Raises:
        ValueError: A trial that is none of `trials`, or a folder that is not of it; or any other error of what
            is no mapping.
    """
    named = {kind: dict(manifest["named"][kind]) for kind in ("state", "best")}
    for trial, name in (one for of_kind in named.values() for one in of_kind.items()):
        own = isinstance(name, str) and (name == trial or re.fullmatch(rf"{CHECKPOINTS}/[^/]+", name))
        if trial not in trials or not own:
            raise ValueError(f"a checkpoint names {name!r:.100} of {trial!r:.100}")
    return named


def plain_capacity(capacity: Capacity) -> dict[str, Any]:
    """Returns a capacity as plain data for a checkpoint's manifest."""
    return asdict(capacity) | {"remat": capacity.remat._asdict()}


def capacity_of(manifest: Mapping[str, Any]) -> Capacity:
    """The inverse of `plain_capacity`."""
    return Capacity(**{**manifest, "remat": Remat(**manifest["remat"])})
