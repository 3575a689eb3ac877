"""scripts/tune.py and scripts/twist.py are `altojax tune` and `twistjax train` with flags."""

import pytest

import altojax.__main__
import altojax.cli
import twistjax.__main__
import twistjax.cli


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        (
            "tune",
            ["--config", "configs/quickstart.yaml", "--output-dir", "runs/x", "--search.lora-rank", "8,0"],
            "altojax: error: command line: search.lora_rank",
        ),
        (
            "twist",
            ["--config", "configs/twistjax/quickstart.yaml", "--subnetworks.kappa", "0.5,2"],
            "twistjax: error: command line: subnetworks.kappa",
        ),
    ],
)
def test_flags_of_a_door_reach_the_config(name, words, said, script, called, capsys, monkeypatch):
    for program in (altojax, twistjax):  # without what a process does as it begins and ends
        monkeypatch.setattr(program.__main__, "main", program.cli.main)
    assert called(script(name), *words) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(said) and err.count("\n") == 1
