"""The section `metric` of a run: how answers are generated and compared, where that decides."""

from typing import Annotated

import pydantic

from altojax.config.search.space import Positive
from jaxrun.config.config import StrictModel
from jaxrun.process.errors import UserError
from jaxrun.untrusted.patterns import Pattern


class MetricSpec(StrictModel):
    """How answers are generated and compared (docs/how-to/metrics.md).

    Attributes:
        max_new_tokens: Longest answer; null is as long as the longest reference.
        answer_pattern: With exact_match: compare the last match of this regular expression (its first group, if any)
            in place of the whole text, such as ``#### (.*)``.
        python: With score: ``module:function``, which is imported and called with prompt, answer and reference, and
            returns a number from 0 to 1.
        command: With score: a program and its arguments, which is run for each evaluation. It reads a JSON line for
            each answer, with prompt, answer and reference, and prints a number from 0 to 1 for each.
        timeout_s: Seconds that one evaluation may wait for either.
    """

    max_new_tokens: Positive | None = None
    answer_pattern: str | None = None
    python: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    command: Annotated[list[str], pydantic.Field(min_length=1)] | None = None
    timeout_s: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 600.0

    @pydantic.field_validator("answer_pattern")
    @classmethod
    def _is_a_pattern(cls, given: str | None) -> str | None:
        if given is not None:
            try:
                Pattern(given, "answer_pattern")
            except UserError as error:
                raise ValueError(str(error)) from None
        return given

    @property
    def code(self) -> str | None:
        """The key that names code of the user's, if one does."""
        return next((key for key in ("python", "command") if getattr(self, key) is not None), None)

    def check_code(self) -> None:
        """Refuses a section that names no code, for where scores decide.

        Raises:
            UserError: It names none.
        """
        if self.code is None:
            raise UserError("select_by is score, but metric has neither python nor command, expected one of them")

    def check(self, select_by: str) -> None:
        """Refuses keys that would mean nothing.

        Raises:
            ValueError: One is set that what the run selects by does not read.
        """
        read = {
            "loss": (),
            "accuracy": (),
            "exact_match": ("max_new_tokens", "answer_pattern"),
            "score": ("max_new_tokens", "python", "command", "timeout_s"),
        }
        takers = {"max_new_tokens": "exact_match or score", "answer_pattern": "exact_match"}
        for key in ("max_new_tokens", "answer_pattern", "python", "command", "timeout_s"):
            if getattr(self, key) != type(self).model_fields[key].default and key not in read[select_by]:
                raise ValueError(
                    f"metric.{key} is given, but select_by is {select_by}, expected {takers.get(key, 'score')}"
                )
        if self.python is not None and self.command is not None:
            raise ValueError("metric.python and metric.command are both given, expected one of them")
