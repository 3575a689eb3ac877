"""Settings of sampling text from a model."""

from typing import Annotated

import pydantic

from jaxrun.config.config import Seed, StrictModel

Positive = Annotated[int, pydantic.Field(ge=1)]
Natural = Annotated[int, pydantic.Field(ge=0)]
Temperature = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class Sampling(StrictModel):
    """Settings of sampling; see `jaxlm.models.generate.generate`.

    Attributes:
        max_new_tokens: Most tokens of a completion.
        temperature: 0 takes the likeliest token.
        top_p: Draw among the likeliest that reach this probability.
        top_k: Draw among this many likeliest; 0 is all.
        seed: Of the draws.
        batch_size: Prompts at once.
    """

    max_new_tokens: Positive = 256
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Natural = 0
    seed: Seed = 0
    batch_size: Positive = 16
