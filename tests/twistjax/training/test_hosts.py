"""Two processes train as one does; whatever happens to one of them, they end together and resume together.

The run has a core, a teacher and momentum of rounds, whose state one process makes and all have.
"""

import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console
from test_rounds import COLLECTIVES
from twist_runs import write_teacher, write_twist_config

from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from twistjax.config import TwistConfig
from twistjax.training.central_model import load_saved
from twistjax.training.prepare import prepare
from twistjax.training.rounds import subnet_mesh
from twistjax.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
ROUNDS, STEPS, RATE = 8, 2, 1e-3
# Runs the program; after a round, one process sends itself a signal. What it compiled is looked at as it ends.
PROGRAM = f"""
import os, re, sys
import twistjax.training.trainer as trainer
from twistjax.cli import main

number, after = int(sys.argv.pop(1)), int(sys.argv.pop(1))
advance, finish = trainer._Run.advance, trainer._Run.finish

def signalled(self):
    advance(self)
    if number and self.round == after:
        os.kill(os.getpid(), number)

def checked(self):
    wave, mean = (self.rounds.programs[name].as_text() for name in ("kappa 0.5", "mean"))
    assert self.rounds.mesh.devices.size == 4
    assert not re.search({COLLECTIVES!r}, wave), "a wave communicates"
    assert len(re.findall({COLLECTIVES!r}, mean)) == 1, "a mean communicates more than once"
    finish(self)

trainer._Run.advance, trainer._Run.finish = signalled, checked
sys.exit(main())
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of eight rounds over a model of two layers, with a checkpoint every second.

    Its outer steps make no rounding larger: rate / (1 - momentum) is 1.
    """
    folder = tmp_path_factory.mktemp("hosts")
    teacher = write_teacher(folder / "teacher")
    return write_twist_config(
        folder,
        f"""
subnetworks: {{workers: 4, kappa: 0.5, block: 16, core: 0.5, importance_rows: 8}}
training:
  {{local_steps: {STEPS}, batch_size: 2, train_samples: {ROUNDS * STEPS * 8}, learning_rate: {RATE},
   optimizer_state: carry, teacher: {teacher}, teacher_share: 0.2, outer: nesterov, outer_momentum: 0.5,
   outer_learning_rate: 0.5}}
evaluation: {{every: 4, tickets: 2}}
checkpoint_rounds: 2
""",
    )


@pytest.fixture(scope="module")
def two(run_together):
    """Runs a command in two processes of two devices each; `number` goes to one of them after a round."""

    def run(path, *overrides, number=0, to=0, after=0):
        signals = [number if one == to else 0 for one in range(2)]
        arguments = [[one, after, "train", path, *overrides] for one in signals]
        return run_together(PROGRAM, arguments, [ROOT, ROOT], devices=2)

    return run


@pytest.fixture(scope="module")
def whole(config, two):
    """What two processes make that nobody disturbs."""
    output_dir = f"output_dir={config.parent}/whole"
    leader, follower = two(config, output_dir)
    assert (leader.code, follower.code) == (0, 0), leader.err + follower.err
    assert "round 8 of 8" in leader.out
    assert not (leader.err + follower.out + follower.err)
    return result(load_config(TwistConfig, config, [output_dir]))


def result(config):
    with Journal.read(config.output_dir) as journal:
        saved = load_saved(Path(config.output_dir), journal.last_checkpoint(), config, prepare(config))
        points = [(one.trial, one.split, one.step, one.loss) for one in journal.points()]
    return jax.device_get(saved.central), points


def test_two_processes_make_what_one_makes(config, whole):
    alone = load_config(TwistConfig, config, [f"output_dir={config.parent}/alone"])
    assert Trainer(alone, console=Console(quiet=True)).run() == 0
    central, points = result(alone)
    assert [point[:3] for point in points] == [point[:3] for point in whole[1]]
    np.testing.assert_allclose([point[3] for point in points], [point[3] for point in whole[1]], atol=1e-5)
    # Only the order differs in which a mean adds up four workers: 3 roundings of 2⁻²⁴ of weights up to 1, each round.
    for path, value in central.weights.items():
        drift = np.abs(whole[0].weights[path] - value)
        assert drift.mean() < ROUNDS * 3 * 2.0**-24
        # Where a gradient is all rounding, Adam may turn its sign into a whole step.
        assert drift.max() <= 2 * ROUNDS * STEPS * RATE


def test_a_run_that_is_interrupted_and_loses_its_leader_goes_on_to_the_same_bits(config, two, whole):
    leader, follower = two(config, number=signal.SIGINT, to=1, after=1)
    assert (leader.code, follower.code) == (130, 130)
    assert "interrupted, with all saved; the same command resumes it" in leader.out
    assert follower.err == "stopping as soon as all is saved; once more stops at once\n"
    assert not follower.out + leader.err
    leader, follower = two(config, number=signal.SIGKILL, to=0, after=6)
    assert (leader.code, follower.code) == (-signal.SIGKILL, 1)
    assert follower.err.startswith("twistjax: error: another process of this run has ended")
    assert len(follower.err.splitlines()) == 1
    assert "resuming from round 1 of 8" in leader.out
    leader, follower = two(config)
    assert (leader.code, follower.code) == (0, 0) and "resuming from round 5 of 8" in leader.out
    again, points = result(load_config(TwistConfig, config))
    assert points == whole[1]
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(whole[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_wrong_ends_both_in_the_same_line(config, two):
    leader, follower = two(config, "data.train=nowhere.txt", f"output_dir={config.parent}/wrong")
    assert (leader.code, follower.code) == (2, 2)
    assert leader.err == follower.err and len(leader.err.splitlines()) == 1
    assert "nowhere.txt" in leader.err


def test_a_process_without_a_device_of_the_mesh_is_refused():
    devices = [SimpleNamespace(process_index=process) for process in (0, 0, 1, 1, 2, 2)]
    with pytest.raises(UserError, match=r"7 cannot be shared evenly by devices of all 3 processes .* a multiple of 3"):
        subnet_mesh(7, devices)
