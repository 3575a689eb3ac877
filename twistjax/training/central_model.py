"""A run's central model on disk: what a checkpoint holds, and the model for whoever uses it after training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.files.checkpoint import load_tree
from jaxlm.models.functional import Functional
from jaxrun.config.config import check_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.files.atomic import inside
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.opening import day_of
from jaxrun.store.records import Checkpoint, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME
from twistjax.config import TwistConfig
from twistjax.training.assignment import Assignment
from twistjax.training.gather_scatter import Weights
from twistjax.training.importance import Order
from twistjax.training.local_training import Moments
from twistjax.training.prepare import PreparedTraining, assignment_of, prepare
from twistjax.training.rounds import Central


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        central: The central model.
        order: Its units by importance, where the run ranks them, else None.
    """

    central: Central
    order: Order | None

    def tree(self) -> dict[str, Any]:
        """Returns it as nested dicts of arrays, with nothing of what the run does not have."""
        central = self.central
        moments = {} if central.moments is None else central.moments._asdict()
        velocity = {} if central.velocity is None else {"velocity": central.velocity}
        order = {} if self.order is None else self.order._asdict()
        return {"weights": central.weights, **moments, **velocity, **order}


@dataclass(frozen=True)
class TrainedRun:
    """A run's central model so far.

    Attributes:
        run_dir: Its folder.
        config: What was asked for.
        prepared: Model config, units and rows.
        weights: Of the central model, float32 by path.
        assignment: Which units its subnetworks have.
        round: Rounds behind it.
    """

    run_dir: Path
    config: TwistConfig
    prepared: PreparedTraining
    weights: Weights
    assignment: Assignment
    round: int


def open_trained(run_dir: str | Path, prepared: PreparedTraining | None = None) -> TrainedRun:
    """Reads a run, also while it is live.

    Args:
        run_dir: Its folder.
        prepared: What it works on; None reads it.

    Raises:
        UserError: No run there, or one without a checkpoint; its model or text is gone.
    """
    run_dir = Path(run_dir)
    with Journal.read(run_dir) as journal:
        config = check_config(TwistConfig, parse_yaml(journal.config_text, str(run_dir)), str(run_dir))
        checkpoint = journal.last_checkpoint()
    prepared = prepared or prepare(config, day=day_of(run_dir))
    saved = load_saved(run_dir, checkpoint, config, prepared)
    assert checkpoint is not None
    assignment = assignment_of(config, prepared, saved.order)
    return TrainedRun(run_dir, config, prepared, saved.central.weights, assignment, checkpoint.tick)


def load_saved(run_dir: Path, checkpoint: Checkpoint | None, config: TwistConfig, prepared: PreparedTraining) -> Saved:
    """Returns what is in a run's checkpoint.

    Raises:
        UserError: There is none yet, or it is damaged.
    """
    if checkpoint is None:
        raise UserError(f"{run_dir}: no checkpoint yet, expected a run that has trained for a while")
    with record_errors(run_dir / JOURNAL_NAME):
        folder = inside(run_dir, checkpoint.manifest["central"])
    tree = load_tree(folder, saved_like(config, prepared).tree())
    moments = Moments(tree["mu"], tree["nu"]) if "mu" in tree else None
    order = Order(tree["heads"], tree["blocks"]) if "heads" in tree else None
    return Saved(Central(tree["weights"], moments, tree.get("velocity")), order)


def saved_like(config: TwistConfig, prepared: PreparedTraining) -> Saved:
    """Returns the shapes of what a run's checkpoint holds."""
    shapes, units = Functional(prepared.model).shapes, prepared.units
    like: Any = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    order: Order | None = None
    heads: Any
    blocks: Any
    if config.subnetworks.ranks:
        numbers = (units.layers, units.rows, units.heads), (units.layers, units.blocks)
        heads, blocks = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in numbers)
        order = Order(heads, blocks)
    carries = config.training.optimizer_state == "carry"
    velocity = like if config.training.outer == "nesterov" else None
    return Saved(Central(like, Moments(like, like) if carries else None, velocity), order)


def checkpoint_bytes(config: TwistConfig, prepared: PreparedTraining) -> int:
    """Returns the bytes of a checkpoint: weights, moments and velocities that go from round to round, in float32."""
    leaves = jax.tree.leaves(saved_like(config, prepared).tree())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
