"""Settings of the verbs that draw and write tickets."""

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from jaxrun.config.config import StrictModel

Kappa = Annotated[float, pydantic.Field(gt=0, le=1)]

REPAIR_ROWS = 256


class RepairSettings(StrictModel):
    """Whether a ticket is re-fit.

    Attributes:
        repair: Re-fit o_proj and down_proj of the (best) ticket in closed form, so that the units it keeps make what
            all made of training text. That takes calibration and a pass of the full model, which a ticket by itself
            does not.
        repair_rows: Training rows that are read for it, at most.
    """

    repair: bool = False
    repair_rows: Annotated[int, pydantic.Field(ge=1)] = REPAIR_ROWS

    @pydantic.model_validator(mode="after")
    def _is_used(self) -> Self:
        if not self.repair and self.repair_rows != REPAIR_ROWS:
            raise ValueError("repair_rows without repair, expected repair=true, too")
        return self


class TicketSettings(RepairSettings):
    """Settings of ``twistjax tickets RUN``.

    Attributes:
        kappa: Shares to keep, one or a list; null is those that were trained.
        draws: Random tickets of each.
        mix: Also mix the layers of this many best tickets, which takes layers × (mix − 1) evaluations; 0 does not.
    """

    kappa: Kappa | Annotated[list[Kappa], pydantic.Field(min_length=1)] | None = None
    draws: Annotated[int, pydantic.Field(ge=1, le=100_000)] = 32
    mix: Annotated[int, pydantic.Field(ge=0)] = 0

    foreign_names: ClassVar[dict[str, str]] = {"n": "draws", "tickets": "draws", "keep": "kappa"}


class TicketExportSettings(RepairSettings):
    """Settings of ``twistjax export RUN``.

    Attributes:
        kappa: The share to keep; 1 is the full model.
        out: Where to.
        ticket: ``best``, ``mix`` or the number of a random ticket.
        dtype: To write in.
        format: A Hugging Face model (``hf``), or one file for llama.cpp, OUT/NAME.gguf under the folder's name
            (``gguf``): of Llama, SmolLM2, Mistral, Qwen2 and Qwen3 without protected layers.
        overwrite: Replace an earlier export that is there, if it holds nothing else.
    """

    kappa: Kappa
    out: Annotated[str, pydantic.Field(min_length=1)]
    ticket: str | int = "best"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    format: Literal["hf", "gguf"] = "hf"
    overwrite: bool = False

    foreign_names: ClassVar[dict[str, str]] = {"output_dir": "out", "keep": "kappa", "torch_dtype": "dtype"}
