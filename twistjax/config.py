"""The config of a training: base model, text, subnetworks, rounds."""

from typing import Annotated, ClassVar, Literal

import pydantic

from jaxlm.data.config import DataConfig
from jaxlm.models.spec import ModelSpec
from jaxrun.config import foreign_keys
from jaxrun.config.config import Seed, StrictModel
from jaxrun.config.config_keys import Ours

Positive = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Draws = Annotated[int, pydantic.Field(ge=1, le=100_000)]
Size = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Kappa = Annotated[float, pydantic.Field(gt=0, le=1)]
SELF = "self"
"""The teacher that is the full model of the round."""
Schedule = Literal["constant", "linear", "cosine"]


class Subnetworks(StrictModel):
    """Assignment of subnetworks to workers in a round.

    Attributes:
        workers: Subnetworks that train in a round; kappa · workers must reach 1, so that every unit has a holder.
        kappa: Share of heads and MLP blocks that a subnetwork keeps; of a list, every wave of workers draws one anew.
        workers_at_once: Workers of a wave, which train side by side; a divisor of `workers`. Null is all of them, and
            with several kappas one for each device.
        block: Neurons of an MLP unit; null is 64, or what of it divides the MLP.
        protected_first: Layers at the start that are everybody's as a whole.
        protected_last: Layers at the end that are. Tickets of a run with protected layers need a modelling file.
        correction: Of what a subnetwork lacks: ``inverse`` multiplies its branches by 1 / kappa, ``full`` those of the
            full model by kappa (ResIST; for one kappa alone), ``none`` does nothing.
        order: Which units a subnetwork keeps: drawn anew in every round (``random``, TwIST), or always the first of
            each layer by ``importance``, so that smaller subnetworks are parts of larger ones and there is one of each
            kappa. Then of several kappas a round has the largest, the smallest, and others drawn (the sandwich rule).
        core: Share of the smallest subnetwork's units that is the most important ones and everybody's; the rest is
            drawn. For random order; 0 is TwIST.
        importance: What ranks units before training: |w| · ‖x‖ of what they add (``activations``), or the square of the
            loss's slope in a gate on each (``gradients``).
        importance_rows: Training rows that are read for it, at most.
    """

    workers: Positive = 4
    kappa: Kappa | Annotated[list[Kappa], pydantic.Field(min_length=1)] = 0.5
    workers_at_once: Positive | None = None
    block: Positive | None = None
    protected_first: Count = 0
    protected_last: Count = 0
    correction: Literal["inverse", "full", "none"] = "inverse"
    order: Literal["random", "importance"] = "random"
    core: Share = 0.0
    importance: Literal["activations", "gradients"] = "activations"
    importance_rows: Positive = 64

    foreign_names: ClassVar[dict[str, str]] = {
        "num_workers": "workers",
        "keep": "kappa",
        "sparsity": "kappa",
        "block_size": "block",
    }

    @property
    def draws(self) -> bool:
        """Whether there are several subnetworks of one kappa."""
        return self.order == "random"

    @property
    def ranks(self) -> bool:
        """Whether units are ranked before training."""
        return self.order == "importance" or self.core > 0

    @property
    def ladder(self) -> tuple[float, ...]:
        """Every kappa, ascending, each once."""
        return tuple(sorted(set(self.kappa))) if isinstance(self.kappa, list) else (self.kappa,)


class Training(StrictModel):
    """Training of workers.

    Attributes:
        local_steps: Steps between two rounds.
        batch_size: Rows of a worker's step.
        num_train_epochs: Passes of all workers together over the rows.
        train_samples: Rows of all workers together; wins over epochs.
        learning_rate: Its peak.
        lr_scheduler_type: Its course over all rounds.
        warmup_ratio: Share of the steps spent on linear warm-up.
        min_lr_ratio: Where linear and cosine end, as a share of the peak.
        weight_decay: Decoupled, of kernels and embeddings.
        adam_beta1: Decay of the first moment.
        adam_beta2: Decay of the second moment.
        adam_epsilon: Added to the root of the second moment.
        max_grad_norm: Clips the norm of a worker's gradient; 0 does not.
        optimizer_state: Moments are averaged over holders like weights (``carry``), or start ``fresh`` in every round,
            whose first steps are then as large as the learning rate, whatever the gradient.
        teacher: A tuned model of the same tokenizer, as model.model_name_or_path has it, whose 64 likeliest tokens at
            every place workers learn; ``self`` is the full model as the round begins, of which all learn but workers of
            kappa 1. Null is the text alone.
        teacher_share: Of the loss that is the divergence from the teacher; the rest is the text's.
        outer: What becomes of the mean of a round: the new model (``mean``, TwIST), or the change to it is a step of
            Nesterov's momentum (``nesterov``), for weights that somebody held.
        outer_momentum: Its momentum.
        outer_learning_rate: Its learning rate.
    """

    local_steps: Positive = 15
    batch_size: Positive = 8
    num_train_epochs: Size = 1.0
    train_samples: Positive | None = None
    learning_rate: Size = 2e-4
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    min_lr_ratio: Share = 0.0
    weight_decay: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.01
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Size = 1e-8
    max_grad_norm: Annotated[float, pydantic.Field(ge=0)] = 1.0
    optimizer_state: Literal["carry", "fresh"] = "carry"
    teacher: Annotated[str, pydantic.Field(min_length=1)] | None = None
    teacher_share: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    outer: Literal["mean", "nesterov"] = "mean"
    outer_momentum: Share = 0.9
    outer_learning_rate: Size = 0.7

    foreign_names: ClassVar[dict[str, str | Ours]] = {
        **foreign_keys.TRAINING,
        "max_steps": Ours("train_samples", "it counts rows of all workers: steps × batch_size × subnetworks.workers"),
        "gradient_accumulation_steps": Ours(note="not supported: a step of a worker is one batch"),
        "local_batches": "local_steps",
    }


class Evaluation(StrictModel):
    """Evaluation of the central model.

    Attributes:
        every: Rounds between evaluations; below 1 a share of all rounds.
        tickets: Random tickets of each kappa, the same ones every time.
    """

    every: Size = 0.1
    tickets: Draws = 2


class Baselines(StrictModel):
    """Baselines that ``twistjax baselines`` compares tickets with.

    Attributes:
        draws: Random tickets, and random structures, of each kappa.
        calibration_rows: Training rows that Wanda and SparseGPT look at.
        learning_rate: Of dense and small dense fine-tuning; null is that of the run.
    """

    draws: Draws = 8
    calibration_rows: Positive = 128
    learning_rate: Size | None = None


class TwistConfig(StrictModel):
    """One run.

    Attributes:
        output_dir: The run's folder.
        model: The model to start from.
        data: Text. ``max_length`` is the length of a row; documents are joined and cut into rows.
        subnetworks: Their sizes, and the workers that train them.
        training: How workers train.
        evaluation: When the central model is looked at.
        baselines: What ``twistjax baselines`` compares tickets with.
        checkpoint_rounds: Rounds between checkpoints; below 1 a share of all rounds. Null is as often as a twentieth
            of the time allows.
        seed: Of the assignment to workers, tickets, order of the data and, where asked for, random weights.
        report_to: Any of tensorboard, wandb, trackio; metrics.jsonl is always written.
    """

    output_dir: str = pydantic.Field(min_length=1)
    model: ModelSpec
    data: DataConfig
    subnetworks: Subnetworks = Subnetworks()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    checkpoint_rounds: Size | None = None
    seed: Seed = 0
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    foreign_names: ClassVar[dict[str, str | Ours]] = {
        **foreign_keys.RUN,
        "out": "output_dir",
        "base_model": "model.model_name_or_path",
        "eval_steps": Ours("evaluation.every", "it counts rounds, below 1 a share of them"),
        "save_steps": Ours("checkpoint_rounds", "it counts rounds, below 1 a share of them"),
        "eval_strategy": "evaluation.every",
        "save_strategy": "checkpoint_rounds",
        "tasks": Ours("data", "twistjax trains on one text"),
        "datasets": "data",
    }
