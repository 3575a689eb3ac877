"""The variant of the training step with which a run takes the fewest predicted seconds, compilations included.

Arithmetic on the steps of a whole run: a long one pays for the compilation of a fast step, a short one does not.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from altojax.device.auto_mesh import weight_bytes
from altojax.estimates.memory_model import adapter_parameters, base_of
from altojax.estimates.step_prices import Prices, StepVariant, prices_of, tokens_that_fit
from altojax.packing.course import Course
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.config import ModelConfig
from jaxlm.models.computation import compute_dtype, remat_choices
from jaxlm.models.head import logits_bytes
from jaxlm.models.spec import ModelSpec
from jaxlm.quantised.formats import Forms
from jaxrun.terminal.progress import duration

PROGRAMS, SKIPPING_PROGRAMS = 4, 2
"""Compilations of a step that a run waits for, about (docs/measured/log.md). Where kernels leave out what a batch does
not fill, one program serves most batches."""


@dataclass(frozen=True)
class Offer:
    """A variant as a run could take it.

    Attributes:
        variant: Of the step.
        prices: What its steps and compilations take.
        tokens: Of the largest step that memory holds; None is any.
    """

    variant: StepVariant
    prices: Prices
    tokens: int | None = None

    @property
    def compile_s(self) -> float:
        """Seconds that a run waits for compilations."""
        return (PROGRAMS if self.prices.padding == 1.0 else SKIPPING_PROGRAMS) * self.prices.compile_s

    def training_s(self, course: Course) -> float:
        """Seconds of the steps of a course, of which there are more where memory holds smaller ones."""
        steps = course.steps if self.tokens is None else max(course.steps, -(-course.tokens // max(self.tokens, 1)))
        return steps * self.prices.step_s + course.tokens * self.prices.token_s

    def told(self, course: Course) -> str:
        """Returns a line that says the variant and its seconds."""
        waited, trained = duration(self.compile_s), duration(self.training_s(course))
        return f"{self.variant}: ~{waited} to compile and ~{trained} to train, by prediction, if no trial ends early"


def variants_of(spec: ModelSpec, kernels: Sequence[str | None]) -> list[StepVariant]:
    """Returns the variants that a config leaves open, the least computed again first.

    Only a GPU's are known well enough to choose among them. Elsewhere layers are scanned, and as little is computed
    again as compiled steps say that fits.

    Args:
        spec: The model.
        kernels: Implementations of the adapter product that a run may take.
    """
    remats = remat_choices(spec)
    if jax.default_backend() != "gpu":
        remats = remats[:1]
    elif spec.scan_layers is None:
        remats += [one._replace(scan_layers=True) for one in remats if not one.scan_layers]
    return [StepVariant(name, remat) for name in kernels for remat in remats]


def offer_of(
    variant: StepVariant,
    spec: ModelSpec,
    config: ModelConfig,
    layout: MeshLayout | None,
    usable_bytes: int,
    *,
    forms: Forms,
    slots: int,
    rank: int,
    keys: Collection[str],
    parameter_bytes: float,
) -> Offer:
    """Returns a variant with its prices, and the largest step that a GPU's memory holds by formulas.

    Of the one that keeps as little as it may, compiled steps alone say that, as on other devices.

    Args:
        variant: Of the training step.
        spec: The model.
        config: Its shapes.
        layout: The mesh, or None for one device.
        usable_bytes: Of a device.
        forms: Of the base's matrices that are packed.
        slots: Of a device.
        rank: The largest of any trial.
        keys: Projections that any trial adapts.
        parameter_bytes: That a slot holds for each parameter of its adapter, the best so far included.
    """
    prices = prices_of(config, variant, slots=slots, rank=rank, keys=keys)
    if jax.default_backend() != "gpu" or variant.remat.remat == remat_choices(spec)[-1].remat:
        return Offer(variant, prices)
    width = jnp.dtype(compute_dtype(spec)).itemsize
    base = base_of(config, width, forms)
    held = base.total + 2 * base.dense if layout is None else weight_bytes(layout, base)
    states = round(parameter_bytes * slots * adapter_parameters(config, rank, keys))
    free = usable_bytes - held - states - logits_bytes()
    local = config if layout is None else layout.local_config
    fits = tokens_that_fit(2 * free // width, local, variant, slots=slots, rank=rank, keys=keys)
    return Offer(variant, prices, fits)


def fewest_seconds(offers: Sequence[Offer], course: Course, least: int) -> Offer:
    """Returns the offer with which a run takes the fewest seconds; the first of several.

    Args:
        offers: At least one.
        course: The steps of the run, where memory holds any.
        least: Tokens that any trial's batch may need; offers that hold less are left out, unless all do.
    """
    holding = [offer for offer in offers if offer.tokens is None or offer.tokens >= least]
    return min(holding or offers, key=lambda offer: offer.compile_s + offer.training_s(course))
