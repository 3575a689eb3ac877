"""A run's central model for whoever uses it after training: its config, units, and weights of the last checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from jaxrun.config.config import check_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.store.journal import Journal
from jaxrun.store.opening import day_of
from twistjax.config import TwistConfig
from twistjax.training.gather_scatter import Weights
from twistjax.training.prepare import PreparedTraining, prepare
from twistjax.training.trainer import load_central


@dataclass(frozen=True)
class TrainedRun:
    """A run's central model so far.

    Attributes:
        run_dir: Its folder.
        config: What was asked for.
        prepared: Model config, units and rows.
        weights: Of the central model, float32 by path.
        round: Rounds behind it.
    """

    run_dir: Path
    config: TwistConfig
    prepared: PreparedTraining
    weights: Weights
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
    central = load_central(run_dir, checkpoint, prepared, carries=config.training.optimizer_state == "carry")
    assert checkpoint is not None
    return TrainedRun(run_dir, config, prepared, central.weights, checkpoint.tick)
