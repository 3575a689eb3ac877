"""Results of a comparison so far, in OUTPUT_DIR/baselines.json."""

from pathlib import Path
from typing import Annotated, Any

import pydantic

from jaxlm.models.perplexity import mean_and_deviation
from jaxrun.config.config import StrictModel, check_config
from jaxrun.files.atomic import write_atomic
from jaxrun.files.foreign_files import read_json

FILE_NAME = "baselines.json"


class Result(StrictModel):
    """One arm at one share kept.

    Attributes:
        arm: What was done.
        kappa: The share of heads and neurons kept, or of weights that are not zero.
        losses: Validation loss in nats per target, of every draw where the arm draws.
        parameters: Numbers in the model's files; zeros count.
    """

    arm: str
    kappa: float
    losses: Annotated[tuple[float, ...], pydantic.Field(min_length=1)]
    parameters: int

    @property
    def perplexity(self) -> tuple[float, float]:
        """Mean and standard deviation over the draws."""
        return mean_and_deviation(self.losses)


class ResultFile(StrictModel):
    """The file.

    Attributes:
        config: What was compared.
        results: In the order in which they were measured.
    """

    config: dict[str, Any]
    results: list[Result]


def read_results(run_dir: Path) -> ResultFile:
    """Returns what is known; nothing where nothing was compared.

    Raises:
        UserError: The file is not as `write_results` writes it.
    """
    path = run_dir / FILE_NAME
    return check_config(ResultFile, read_json(path), str(path)) if path.is_file() else ResultFile(config={}, results=[])


def write_results(run_dir: Path, found: ResultFile) -> None:
    """Writes what is known, in place of what was.

    Raises:
        UserError: Full disk, no permission.
    """
    write_atomic(run_dir / FILE_NAME, found.model_dump_json(indent=2) + "\n")
