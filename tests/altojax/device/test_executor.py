"""What an evaluation says while it is under way."""

from tiny import ROWS, make_runner, shared_executor


def test_who_awaits_training_steps_is_told_once_when_the_device_has_a_batch():
    executor, runner = shared_executor(5, 8), make_runner(1, 4, 2)
    runner.enter(executor, 0)
    told: list[object] = []
    executor.evaluate([(0, ROWS)], 8, begun=lambda: told.append("begun"), done=told.append)
    assert told[0] == "begun" and told.count("begun") == 1
    assert told[1:] == sorted(told[1:]) and told[-1] == len(ROWS) > 8
