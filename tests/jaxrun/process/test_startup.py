"""Ctrl-C is one line and exit code 130, at whatever moment it comes: in imports, configs, models, compilation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "tiny"
DRIVER = """
import functools, importlib.machinery, os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where who started the tests ignores it
wanted, function = sys.argv[1].partition(":")[::2]
program, words = sys.argv[2], sys.argv[3:]

class Press:
    def find_spec(self, name, path=None, target=None):
        if name != wanted:
            return None
        sys.meta_path.remove(self)
        if not function:
            os.kill(os.getpid(), signal.SIGINT)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), function and wrap(module))
        return spec

def wrap(module):
    given = getattr(module, function)

    @functools.wraps(given)
    def pressed(*args, **kwargs):
        setattr(module, function, given)
        os.kill(os.getpid(), signal.SIGINT)
        return given(*args, **kwargs)

    setattr(module, function, pressed)

if wanted in sys.modules:
    wrap(sys.modules[wanted])
else:
    sys.meta_path.insert(0, Press())
sys.argv = [program, *words]
if program.endswith(".py"):
    sys.path[0] = os.path.dirname(program)
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
"""Runs a program and presses Ctrl-C as it imports a module, or before the first call of a function of one."""
TUNE = """
output_dir: run
model: {{model_name_or_path: {tiny}, random_init: true}}
tasks: [{{name: rows, data: {{train: rows.jsonl, max_length: 32}}}}]
"""
TWIST = """
output_dir: run
model: {{model_name_or_path: {tiny}, random_init: true}}
data: {{train: rows.jsonl, max_length: 32}}
training: {{local_steps: 1, batch_size: 2}}
subnetworks: {{workers: 2}}
"""
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py") if "\nif __name__ ==" in path.read_text())


@pytest.fixture
def folder(tmp_path):
    """A folder with a config of each program."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a row that is long enough to be one of several"}\n' * 40)
    (tmp_path / "tune.yaml").write_text(TUNE.format(tiny=TINY))
    (tmp_path / "twist.yaml").write_text(TWIST.format(tiny=TINY))
    return tmp_path


@pytest.fixture
def press(folder):
    def press(what: str, program: str, *words: str) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        made = subprocess.run(
            [sys.executable, "-c", DRIVER, what, program, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return made.returncode, made.stdout, made.stderr

    return press


@pytest.fixture
def press_later(folder, forks):
    """Before a function is called the first time, in a process that has imported most of what it needs."""

    def press(what: str, program: str, *words: str) -> tuple[int, str, str]:
        [ended] = forks.begin(DRIVER, [[what, program, *words]], [folder], {}).ended()
        return ended

    return press


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "what", "words"),
    [
        ("altojax", "altojax.cli", ["--help"]),
        ("altojax", "jaxrun.config.config", ["tune", "tune.yaml"]),
        ("altojax", "numpy", ["status", "run"]),
        ("altojax", "jax", ["doctor"]),
        ("twistjax", "pydantic", ["train", "twist.yaml"]),
        ("twistjax", "flax", ["train", "twist.yaml"]),
    ],
)
def test_at_the_start_it_is_one_line(press, program, what, words):
    assert press(what, program, *words) == (130, "", f"{program}: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "what", "words"),
    [
        ("altojax", "jaxrun.config.config:parse_yaml", ["tune", "tune.yaml"]),
        ("twistjax", "jaxlm.files.weights:load_model", ["measure", str(TINY)]),
    ],
)
def test_before_a_config_is_read_or_a_model_is_loaded_it_is_one_line(press_later, program, what, words):
    assert press_later(what, program, *words) == (130, "", f"{program}: interrupted\n")


@pytest.mark.slow
def test_while_a_run_compiles_it_stops_at_a_safe_point(press_later):
    code, out, err = press_later("jax._src.compiler:compile_or_get_cached", "altojax", "tune", "tune.yaml")
    assert code == 130
    assert "Traceback" not in out + err
    assert err in ("altojax: interrupted\n", "stopping as soon as all is saved; once more stops at once\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_expects_it_before_it_imports_anything_else(script):
    lines = script.read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports[0] == "from jaxrun.process.script import run_script"
    assert lines[-1].endswith("(run_script(main))")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "what"), [("plan/plan_capacity.py", "matplotlib"), ("setup/make_stdlib_data.py", "jaxrun.files.atomic")]
)
def test_a_script_is_ended_with_one_line(press, tmp_path, script, what):
    assert press(what, str(ROOT / "scripts" / script)) == (130, "", f"{Path(script).name}: interrupted\n")


def test_a_process_that_was_started_to_ignore_it_goes_on(tmp_path):
    nohup = shutil.which("env")
    script = (
        "import signal; from jaxrun.process.startup import expect_interrupt; expect_interrupt('x'); "
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    command = [str(nohup), "--ignore-signal=INT", sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "True\n"
