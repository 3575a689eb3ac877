"""The presets of the early-exit rules: plain numbers, each with where they come from. A rule not named is off."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Chosen on 540 LoRA trials of SmolLM2-135M (scripts/early_exit/choose_rules.py, docs/measured/averages.md), to save
    # two thirds and keep the winner: an average tells early where a trial lands once its learning rate has come down.
    # Many gentle rungs keep what few hard ones lose: who leads changes most before a third of the schedule.
    "default": {
        "not_finite": {"enabled": True},
        "blown_up": {"enabled": True},
        "underperforming": {
            "enabled": True,
            "at": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
            "keep": (0.64, 0.922, 0.661, 0.846, 0.758, 0.84, 0.857, 0.889),
            "rank_by": "average",
            "at_least": 4,
        },
    },
    # Chosen on 360 LoRA trials of SmolLM2-135M (scripts/early_exit/choose_rules.py, docs/measured/alto.md), to lose
    # little by raw losses: under a cosine schedule the best trials look middling until their rate has come down.
    "cautious": {
        "not_finite": {"enabled": True},
        "blown_up": {"enabled": True},
        "underperforming": {
            "enabled": True,
            "at": (0.1, 0.6, 0.8),
            "keep": (0.7, 0.8, 0.5),
            "rank_by": "best",
            "falling": 0.1,
            "horizon": 1.0,
            "span": 0.15,
            "noise": 6.0,
            "at_least": 2,
        },
    },
    # Chosen on small networks trained from scratch (TaskSet, docs/measured/log.md), to save most; loses LoRA's winners.
    "eager": {
        "not_finite": {"enabled": True},
        "blown_up": {"enabled": True},
        "underperforming": {
            "enabled": True,
            "at": (0.1, 0.2, 0.4, 0.8),
            "keep": (0.3, 0.5, 0.5, 0.5),
            "rank_by": "best",
            "falling": 0.2,
            "horizon": 0.3,
            "span": 0.1,
            "noise": 6.0,
            "at_least": 2,
        },
    },
    # ALTO (arXiv 2604.05426). It names neither the smoothing nor a guard for losses that are not finite. Its comparison
    # stays at 5 %, so it does not wait for the second evaluation: one is added before it.
    "paper": {
        "not_finite": {"enabled": True},
        "diverging": {"enabled": True, "window": 2, "slope": 0.001, "patience": 2},
        "overfitting": {"enabled": True, "gap": 0.1, "patience": 2},
        "underperforming": {"enabled": True, "at": (0.05,), "keep": (0.25,), "rank_by": "last", "waits": False},
    },
    # Successive halving (Jamieson & Talwalkar 2016) with rungs at 1/16, 1/8, 1/4 and 1/2.
    "halving": {"not_finite": {"enabled": True}, "halving": {"enabled": True, "first": 0.0625, "eta": 2.0}},
    # Median stopping (Golovin et al. 2017) with a grace of a tenth of the schedule.
    "median": {"not_finite": {"enabled": True}, "median": {"enabled": True}},
    # The baseline that humbles clever rules.
    "topk": {"not_finite": {"enabled": True}, "top_k": {"enabled": True, "steps": 0.2, "keep": 8}},
    "none": {},
}
WITHOUT_AVERAGES = {"default": "cautious"}
"""What a preset that ranks by averages is where trials have none."""
FEW_RUNGS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "default": {"at": (0.05, 0.2, 0.6, 0.8), "keep": (0.58, 0.603, 0.6, 0.381)},
}
"""The rungs of a preset where a metric decides: at each it is asked, of every trial that has come there."""
