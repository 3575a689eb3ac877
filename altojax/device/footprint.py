"""Memory footprint of a run, part by part, before it exists: from shapes, and from the jaxprs of its steps."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from altojax.device.batch_shapes import Shape
from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.routing import LoRA
from altojax.device.optimizer import empty_hyper
from altojax.device.programs import jitted_steps
from altojax.device.sharding import Sharding
from altojax.device.slots import empty_state
from altojax.device.step import Frozen, SlotState, StaticPlan, local_structure, split_model
from jaxlm.devices.mesh import MeshLayout
from jaxlm.devices.program_memory import Usage, usage
from jaxlm.families.config import ModelConfig
from jaxlm.models.computation import Remat
from jaxlm.models.head import head_chunk_of
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import Forms, formed

ADDED = {"cpu": 1.12, "accelerator": 1.0}
"""XLA's temporaries as a multiple of those read off a step's jaxpr (docs/measured/log.md): for a CPU it adds copies and
gaps between buffers, for a GPU it fuses more."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device.

    Attributes:
        base: Frozen weights, or the device's part of them.
        adapters: Of all its slots, float32.
        kept: The best adapter of every slot so far, likewise.
        moments: AdamW's, likewise, and its counts.
        accumulators: Summed gradients, where any trial accumulates.
        averages: Running averages of the adapters.
        training: Temporaries of the largest training step: activations, gradients, logits.
        evaluation: Temporaries of the largest evaluation step, which never coexist with a training step's.
        logits: Of one chunk of targets, float32, counted in `training` and `evaluation`.
    """

    base: int
    adapters: int
    kept: int
    moments: int
    accumulators: int
    averages: int
    training: int
    evaluation: int
    logits: int

    @property
    def resident(self) -> int:
        """Bytes that stay from step to step."""
        return self.base + self.adapters + self.kept + self.moments + self.accumulators + self.averages

    @property
    def peak(self) -> int:
        """The most at a time."""
        return self.resident + max(self.training, self.evaluation)


def footprint(
    config: ModelConfig,
    plan: StaticPlan,
    *,
    dtype: DTypeLike,
    remat: Remat,
    training: Shape,
    evaluation: Shape,
    layout: MeshLayout | None = None,
    forms: Forms | None = None,
) -> Footprint:
    """Returns the memory of a run on each device.

    Args:
        config: The whole base.
        plan: The static settings: slots, rank, projections and more.
        dtype: Of the base and of the computation.
        remat: What the backward pass recomputes.
        training: The largest training step of a device.
        evaluation: The largest evaluation step of a device.
        layout: The mesh; None is one device.
        forms: Of the base's matrices that are packed.
    """
    program = _AbstractSteps(config, plan, dtype, remat, layout, forms or {})
    train, evaluate = program.usage("train", training), program.usage("eval", evaluation)
    sizes = program.parts(train)
    made = ADDED["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    chunk = min(head_chunk_of(config), max(training.targets, evaluation.targets))
    return Footprint(
        **sizes,
        kept=sizes["adapters"],
        training=round(made * train.temporary),
        evaluation=round(made * evaluate.temporary),
        logits=4 * chunk * config.vocab_size,
    )


class _AbstractSteps:
    """The steps of a run over arrays that do not exist."""

    def __init__(
        self,
        config: ModelConfig,
        plan: StaticPlan,
        dtype: DTypeLike,
        remat: Remat,
        layout: MeshLayout | None,
        forms: Forms,
    ):
        self.plan, self.sharding = plan, Sharding(layout, plan.slots, plan.objective)
        sizes: dict[str, Any] = {"rank": plan.rank, "kernels": plan.kernels}

        def build() -> Transformer:
            kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, **remat._asdict()}
            model = formed(Transformer(config, rngs=nnx.Rngs(0), **kinds), forms)
            adapt(model, dict(plan.projections), slots=plan.slots, **sizes)
            return model

        model = nnx.eval_shape(build)
        frozen, adapters = split_model(model, LoRA)
        if layout is not None:
            frozen = Frozen(local_structure(model, layout, dict(plan.projections), sizes), frozen.weights)
        self.weights = frozen.weights

        def empty(adapters: Any) -> SlotState:
            sizes: dict[str, Any] = {"accumulates": plan.accumulates, "averages": len(plan.averages)}
            moments = self.sharding.moments(adapters, plan.optimizer_state)
            return empty_state(adapters, moments, **sizes, steps=jnp.zeros(plan.slots, jnp.int32))

        self.state: SlotState = jax.eval_shape(empty, adapters)
        self.steps = jitted_steps(frozen, self.state, self.sharding, plan, head_chunk_of(config))

    def usage(self, step: str, shape: Shape) -> Usage:
        """Returns the memory of a step."""
        drops = step == "train" and self.plan.drops
        batch = self.sharding.batch([], shape, self.plan.rows, drops=drops)
        state = self.state if step == "train" else self.state.adapters
        hyper = self.sharding.hyper(empty_hyper(self.plan.slots, self.plan.objective.trial_values))
        operands = (self.weights, state, hyper, batch)
        program = jax.make_jaxpr(self.steps[step])(*operands)
        counts = [len(jax.tree.leaves(one)) for one in operands]
        donated = [step == "train" and part == 1 for part, count in enumerate(counts) for _ in range(count)]
        return usage(program, donated)

    def parts(self, train: Usage) -> dict[str, int]:
        """Returns the resident bytes, by the inputs of the training step."""
        state = self.state
        names: dict[str, Any] = {"base": self.weights, "adapters": state.adapters, "moments": (state.mu, state.nu)}
        names |= {"accumulators": state.gathered, "steps": state.steps, "averages": state.averages}
        inputs = iter(train.inputs)
        sizes = {name: sum(next(inputs) for _ in jax.tree.leaves(tree)) for name, tree in names.items()}
        sizes["moments"] += sizes.pop("steps")
        return sizes
