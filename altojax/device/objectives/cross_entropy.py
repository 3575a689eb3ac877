"""Cross-entropy, the objective of supervised fine-tuning."""

from dataclasses import dataclass

from altojax.device.batch import SingleRows
from altojax.device.objectives.objective import Outputs, Terms


@dataclass(frozen=True)
class CrossEntropy(SingleRows):
    """The negative log likelihood of targets, averaged over those of a slot's whole effective batch."""

    trial_values: tuple[str, ...] = ()

    def __call__(self, outputs: Outputs) -> Terms:
        """Returns the loss of each slot, and of each row."""
        targets = outputs.targets()
        rows = outputs.over_rows(targets, targets.nll)[:, 0]
        return Terms(outputs.over_targets(targets, targets.nll), {}, rows)


CROSS_ENTROPY = CrossEntropy()
