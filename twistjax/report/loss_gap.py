"""The loss gap of a ticket to the full model, and whether it is worth having."""

import math

from jaxlm.models.perplexity import perplexity, shown

FAR_WORSE = math.log(2)
"""Nats per token above the full model at which a ticket is said to be far worse: twice the perplexity, a bit a token.

Models of one family lose a third of that when they are made three times smaller (SmolLM2: 360M to 135M, 0.2 nats), so
whatever loses this much has not been trained into a smaller model, but cut out of one.
"""


def warning(what: str, loss: float, full: float) -> str | None:
    """Returns a line about a ticket that is far worse than the full model, else None.

    Args:
        what: Which ticket, such as ``the best ticket of kappa 0.5``.
        loss: Its loss over the validation rows, in nats per token.
        full: That of the full model, over the same rows.
    """
    if loss - full <= FAR_WORSE:
        return None
    times = "over 1e+300" if loss - full > 690 else f"{math.exp(loss - full):.3g}"
    return (
        f"warning: {what} is far worse than the full model, perplexity {shown(perplexity(loss))} against "
        f"{shown(perplexity(full))} ({times} times); train for longer, or keep more"
    )
