"""A base on its devices: how many slots fit beside it, by its footprint, and then its weights.

Nothing is allocated before it is known to fit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import jax

from altojax.config.tune_config import TuneConfig, parse_bytes
from altojax.device.auto_mesh import choose_layout
from altojax.device.batch_shapes import Shape, expected_shape, rounded
from altojax.device.executor import Executor
from altojax.device.footprint import Footprint, footprint
from altojax.device.memory import enough_tokens, evaluation_rows
from altojax.estimates.memory_model import COPIES, adapter_parameters, base_of, needed_bytes, slot_of, state_bytes
from altojax.estimates.step_prices import StepVariant
from altojax.packing.course import Course, foresee
from altojax.packing.slot_admission import Load, widest
from altojax.packing.variant_choice import Offer, fewest_seconds, offer_of, variants_of
from altojax.run.prepare import CPU_SLOTS, DEVICE_SLOTS, PreparedBase, kernels_of, plan_of
from jaxlm.devices.hosts import ALONE, Hosts
from jaxlm.devices.machine import MARGIN, device_budget, out_of_memory
from jaxlm.devices.mesh import MeshLayout
from jaxlm.files.weights import load_model
from jaxlm.models.computation import Remat, compute_dtype, remat_choices
from jaxlm.models.head import logits_bytes
from jaxlm.models.spec import ModelSpec
from jaxlm.quantised.formats import pack_of
from jaxrun.process.errors import Failure, UserError
from jaxrun.terminal.sizes import counted, size_text

LESS = 0.8
"""Share of a budget that did not suffice, with which the message proposes to try again."""
AMPLE = 8
"""Times over that a run must fit by `altojax.estimates.memory_model` for its steps not to be traced."""


@dataclass(frozen=True)
class PlacedBase:
    """A base, the devices that it gets, and how many slots fit beside it.

    Attributes:
        config: The run.
        base: The base.
        layout: The mesh, or None for one device.
        budget_bytes: Of a device.
        useful: Slots of all device groups that are asked for, or of use.
        fits: The most of these that fit, by prediction; 0 is none.
    """

    config: TuneConfig
    base: PreparedBase
    layout: MeshLayout | None
    budget_bytes: int
    useful: int
    fits: int

    @property
    def slots(self) -> int:
        """Slots that are asked for, or else the most that fit; at least one a group."""
        groups = 1 if self.layout is None else self.layout.groups
        return self.useful if self.config.slots is not None else max(self.fits, groups)

    @property
    def usable_bytes(self) -> int:
        """The budget without its margin."""
        return int(self.budget_bytes * (1 - MARGIN))

    @cached_property
    def variant(self) -> StepVariant:
        """The training step with which the run takes the fewest predicted seconds."""
        base, layout = self.base, self.layout
        variants = variants_of(base.spec, kernels_of(base.spec))
        if len(variants) == 1:
            return variants[0]
        loads, course = course_of(base, self.slots, layout)
        least = max(load.most for load in loads)
        return fewest_seconds([self.offer(variant) for variant in variants], course, least).variant

    def offer(self, variant: StepVariant) -> Offer:
        """Returns a variant with what it takes here."""
        base, sizes = self.base, _sizes(self.base, self.layout, self.slots)
        each = state_bytes(self.config.optimizer_state, 1 + base.accumulates + len(base.averages))
        sizes |= {"forms": base.forms, "parameter_bytes": each}
        return offer_of(variant, base.spec, base.config, self.layout, self.usable_bytes, **sizes)

    def expected(self) -> tuple[Footprint, StepVariant]:
        """Returns the memory of the run on a device, and its training step, which recomputes the least that fits."""
        for remat in remats_from(self.base.spec, self.variant.remat):
            variant = self.variant._replace(remat=remat)
            tokens = self.offer(variant).tokens
            found = footprint_of(self.config, self.base, self.layout, self.slots, variant=variant, tokens=tokens)
            if found.peak <= self.usable_bytes:
                break
        return found, variant

    def check(self) -> None:
        """Refuses slots that do not fit even where they train one after the other.

        Raises:
            UserError: With their memory, and how many fit.
        """
        if self.slots <= self.fits:
            return
        least = footprint_of(self.config, self.base, self.layout, self.slots, smallest=True)
        if least.peak <= self.usable_bytes:
            return
        given = f"slots: {self.slots}" if self.config.slots else "memory_budget"
        taken = (
            f"{size_text(least.peak)} of a device (base {size_text(least.base)}, adapters and moments "
            f"{size_text(least.resident - least.base)}, the smallest step {size_text(least.peak - least.resident)})"
        )
        known = f"of {size_text(self.budget_bytes)} a run may use {size_text(self.usable_bytes)}"
        if self.fits:
            expected = f"expected at most {counted(self.fits, 'slot')}" + (
                "" if self.config.slots else " or a larger budget"
            )
        else:
            expected = "expected a larger memory_budget, a smaller batch, shorter rows or a mesh of more devices"
        raise UserError(f"{given}: would take {taken}, {known}; {expected}")


def place(config: TuneConfig, base: PreparedBase, hosts: Hosts = ALONE) -> PlacedBase:
    """Chooses the mesh and the slots of a base; loads nothing. Of several processes all must call it.

    Raises:
        UserError: The mesh fits neither the base nor the devices, or a device has less memory than its budget.
    """
    budget = parse_bytes(config.memory_budget) or min(hosts.gather(device_budget()))
    has = min(hosts.gather(device_budget()))
    if budget > has and jax.default_backend() != "cpu":
        raise UserError(
            f"memory_budget: {size_text(budget)} of a device that has {size_text(has)}, expected at most that, or null"
        )
    layout = choose_layout(config.mesh, base.config, len(base.trials), compute_dtype(base.spec), budget, base.forms)
    groups = 1 if layout is None else layout.groups
    usable = int(budget * (1 - MARGIN))

    def fits(own: int) -> bool:
        slots = own * groups
        return (
            AMPLE * _roughly(config, base, slots) <= usable or footprint_of(config, base, layout, slots).peak <= usable
        )

    useful = useful_slots(config, base, groups)
    return PlacedBase(config, base, layout, budget, useful, _most(useful // groups, fits) * groups)


def useful_slots(config: TuneConfig, base: PreparedBase, groups: int) -> int:
    """Returns the slots of all device groups that are asked for, or of use, the same for each group."""
    limit = CPU_SLOTS if jax.default_backend() == "cpu" else DEVICE_SLOTS * groups
    return -(-min(config.slots or limit, len(base.trials)) // groups) * groups


def remats_from(spec: ModelSpec, first: Remat) -> list[Remat]:
    """Returns a rematerialisation and those that recompute more, which are taken where it does not fit."""
    choices = remat_choices(spec)
    at = [one.remat for one in choices].index(first.remat)
    return [first, *choices[at + 1 :]]


def build_executor(placed: PlacedBase, hosts: Hosts = ALONE, variant: StepVariant | None = None) -> Executor:
    """Loads the base and makes its slots; of several processes each loads its part, and all must call it.

    Args:
        placed: The base on its devices.
        hosts: The processes.
        variant: Of the training step; None is that of the fewest predicted seconds.

    Raises:
        UserError: A weight is missing or damaged, on some process, or the slots do not fit.
    """
    placed.check()
    base, layout, variant = placed.base, placed.layout, variant or placed.variant
    with hosts.together():
        _, model = load_model(
            base.spec.model_name_or_path,
            dtype=compute_dtype(base.spec),
            **variant.remat._asdict(),
            random_init=base.spec.random_init,
            seed=placed.config.seed,
            placement=None if layout is None else layout.placement,
            pack=pack_of(base.spec.quantize),
        )
    return Executor(model, plan_of(placed.config, base, placed.slots, variant.kernels), layout=layout)


class LoadedBase:
    """The executor of one base at a time: the one before makes room for the next."""

    def __init__(self, config: TuneConfig, hosts: Hosts = ALONE):
        """Loads nothing yet; of several processes all must make the same calls."""
        self._config, self._hosts = config, hosts
        self._placed: PlacedBase | None = None
        self._executor: Executor | None = None

    def executor(self, base: PreparedBase, variant: StepVariant | None = None) -> Executor:
        """Returns the executor of a base, which is loaded if another or none is.

        Args:
            base: The base.
            variant: As for `build_executor`.

        Raises:
            UserError: As `build_executor`; or the mesh fits neither the base nor the devices.
        """
        if self._executor is None or self.placed.base is not base:
            self.close()
            self._placed = place(self._config, base, self._hosts)
            self._executor = build_executor(self._placed, self._hosts, variant)
        return self._executor

    @property
    def placed(self) -> PlacedBase:
        """The base that is loaded, on its devices."""
        assert self._placed is not None
        return self._placed

    @property
    def devices(self) -> int | None:
        """Devices of the base that is loaded; None where none is."""
        return None if self._executor is None else self._executor.sharding.devices

    def close(self) -> None:
        """Lets go of the executor and its arrays."""
        if self._executor is not None:
            self._executor.close()
        self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def explained_out_of_memory(config: TuneConfig, bases: Sequence[PreparedBase]) -> Iterator[None]:
    """Turns memory that runs out, although the run was predicted to fit, into one line that says what would fit.

    Raises:
        Failure: Memory ran out.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if (said := out_of_memory(error)) is None:
            raise
        worst = max((place(config, base) for base in bases), key=lambda one: one.expected()[0].peak)
        less = round(LESS * min(worst.budget_bytes, device_budget()))
        fits = place(config.model_copy(update={"slots": None, "memory_budget": less}), worst.base).fits
        less_kept = "model.remat=full, or " if worst.base.spec.remat in ("none", "dots") else ""
        slots = f"{less_kept}slots={min(fits, worst.slots)} memory_budget={less // 2**20}MiB, which fit by prediction"
        raise Failure(
            f"{said}, with {worst.slots} slots that were predicted to take {size_text(worst.expected()[0].peak)} of "
            f"{size_text(worst.budget_bytes)}; expected {slots if fits else 'a smaller batch or shorter rows'}; "
            "what was saved is kept, and the command resumes from there, with these as well"
        ) from error


def least_disk_bytes(config: TuneConfig, base: PreparedBase) -> int:
    """Returns the bytes of a checkpoint of all trials in slots, and of the adapters that a run hands back."""
    groups = 1 if config.mesh is None else config.mesh.adapter or 1
    adapters = [4 * adapter_parameters(base.config, trial.config.lora_rank, trial.keys) for trial in base.at_largest]
    copies = [COPIES + trial.accumulates + len(base.averages) for trial in base.at_largest]
    states = [count * size for count, size in zip(copies, adapters, strict=True)]
    exported = sum(adapters) if config.keep_adapters == "all" else max(adapters) * len(base.tasks)
    return sum(sorted(states, reverse=True)[: useful_slots(config, base, groups)]) + exported


def course_of(base: PreparedBase, slots: int, layout: MeshLayout | None) -> tuple[list[Load], Course]:
    """Returns the loads of all trials on a device, and the course of a run.

    Trials that are proposed while others run load it as the largest that they may be; the course is of those that stand
    for them.

    Args:
        base: The base.
        slots: Of all device groups.
        layout: The mesh, or None for one device.
    """
    groups, replicas = (1, 1) if layout is None else (layout.groups, layout.replicas)
    usual = [trial.load.on_device(replicas, base.rows.tile) for trial in base.trials]
    largest = [trial.load.on_device(replicas, base.rows.tile) for trial in base.at_largest]
    return largest, foresee(usual, groups, slots // groups)


def largest_step(
    base: PreparedBase, loads: list[Load], groups: int, own_slots: int, tokens: int | None = None
) -> Shape:
    """Returns the largest training step that a run would like a device to take.

    Args:
        base: The base.
        loads: Of its trials on a device.
        groups: Device groups.
        own_slots: Slots of each.
        tokens: That memory holds; None is any.
    """
    rows = rounded(base.rows.rows_of(widest(loads, groups, own_slots)))
    if (enough := enough_tokens()) is not None:
        most = 2 * enough if tokens is None else min(2 * enough, tokens)
        rows = min(rows, most // base.rows.length)
    return expected_shape(max(rows, _least_rows(base, loads)), base.rows.length, base.targets)


def smallest_step(base: PreparedBase, loads: list[Load]) -> Shape:
    """Returns the smallest training step that a run can do with: the largest micro-batch of one trial."""
    return expected_shape(_least_rows(base, loads), base.rows.length, base.targets)


def _least_rows(base: PreparedBase, loads: list[Load]) -> int:
    """Returns the rows that any micro-batch of any trial fits in, however long its texts are."""
    apart = base.rows.length // base.rows.whole_tiles(max(load.longest for load in loads))
    return max(-(-load.rows // apart) for load in loads)


def footprint_of(
    config: TuneConfig,
    base: PreparedBase,
    layout: MeshLayout | None,
    slots: int,
    *,
    smallest: bool = False,
    variant: StepVariant | None = None,
    tokens: int | None = None,
) -> Footprint:
    """Returns the memory of a run of a base on a device.

    Args:
        config: The run.
        base: The base.
        layout: The mesh, or None for one device.
        slots: Of all device groups.
        smallest: With the smallest training step that it can do with, rather than the largest that it would take.
        variant: Of the training step; None recomputes the most that it may.
        tokens: Of the largest that is wanted; None is any.
    """
    variant = variant or StepVariant(kernels_of(base.spec)[-1], remat_choices(base.spec)[-1])
    plan = plan_of(config, base, slots, variant.kernels)
    loads, _ = course_of(base, slots, layout)
    own = slots // (1 if layout is None else layout.groups)
    largest = largest_step(base, loads, slots // own, own, tokens)
    training = smallest_step(base, loads) if smallest else largest
    return footprint(
        base.config,
        plan,
        dtype=compute_dtype(base.spec),
        remat=variant.remat,
        training=training,
        evaluation=expected_shape(evaluation_rows(training.rows, base.rows, own), base.rows.length, base.targets),
        layout=layout,
        forms=base.forms,
    )


def _sizes(base: PreparedBase, layout: MeshLayout | None, slots: int) -> dict[str, Any]:
    """Returns a device's slots, their largest rank, and the projections that any adapts."""
    rank = max(trial.config.lora_rank for trial in base.at_largest)
    return {"slots": slots // (1 if layout is None else layout.groups), "rank": rank, "keys": base.projections().keys()}


def _roughly(config: TuneConfig, base: PreparedBase, slots: int) -> int:
    """Estimates the bytes of a run on one device: formulas alone, which know neither dtype nor attention."""
    rank, keys = max(trial.config.lora_rank for trial in base.at_largest), base.projections().keys()
    tokens = max(trial.load.most for trial in base.at_largest)
    slot = slot_of(base.config, rank, keys, "none", tokens, len(base.averages), config.optimizer_state)
    return needed_bytes(base_of(base.config, 4).total, slot, slots, logits_bytes())


def _most(wanted: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number up to `wanted` that fits, 0 if none does; where one fits, so do all below it."""
    if fits(wanted):
        return wanted
    low, high = 0, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
