"""What is exported is the adapter whose loss the table names, its running average too."""

import json

import pytest

import altojax
from altojax.report.run_record import record_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unreported", "few_shapes")]

BOUND = 2e-6


def tuned(folder, result: str) -> altojax.Run:
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    for name, some in (("train", rows[::2]), ("validation", rows[1::8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return altojax.tune(
        {
            "output_dir": str(folder / "run"),
            "model": {"model_name_or_path": "configs/tiny", "random_init": True, "dtype": "float32"},
            "early_exit": "none",
            "average": {"windows": [1, 0]},
            "result": result,
            "search": {
                "target_modules": ["q_proj"],
                "lora_rank": [2, 4],
                "learning_rate": 3e-2,
                "lr_scheduler_type": "constant",
                "batch_size": 2,
                "train_samples": 32,
            },
            "tasks": [
                {
                    "name": "sums",
                    "data": {
                        "train": str(folder / "train.jsonl"),
                        "validation": str(folder / "validation.jsonl"),
                        "max_length": 32,
                    },
                }
            ],
        }
    )


@pytest.mark.parametrize("result", ["best", "last", "average"])
def test_an_exported_adapter_has_the_loss_that_the_table_names(tmp_path, result):
    run = tuned(tmp_path, result)
    for trial in record_of(run.path).trials:
        averages = [trial.more[name] for name in ("average_val_loss", "average_val_loss_2")]
        assert [trial.total_steps in losses for losses in averages] == [True, True]
        raw, mean = trial.validation[-1].loss, averages[0][trial.total_steps]
        wanted = {
            "best": min([mean, *(point.loss for point in trial.validation)]),
            "last": raw,
            "average": mean,
        }[result]
        assert trial.best_loss == wanted != (raw if result == "average" else mean if result == "last" else None)
        exported = altojax.load(run.path, adapter=run.path / "sums" / trial.trial)
        assert exported.loss(tmp_path / "validation.jsonl") == pytest.approx(wanted, abs=BOUND)
