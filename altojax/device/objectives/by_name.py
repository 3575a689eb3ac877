"""The objectives of runs, by the names that configs give them."""

from collections.abc import Mapping

from altojax.config.objectives import ObjectiveName
from altojax.device.objectives.cross_entropy import CROSS_ENTROPY
from altojax.device.objectives.objective import Objective
from altojax.device.objectives.preference import PREFERENCE

OBJECTIVES: Mapping[ObjectiveName, Objective] = {"sft": CROSS_ENTROPY, "dpo": PREFERENCE}
