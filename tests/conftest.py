"""Every test runs on eight CPU devices with strict dtypes, strict ranks and warnings as errors."""

import gc
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where Python is told to keep no bytecode, every process that a test starts would compile all libraries for 9 s of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# As the programs do: transformers says nothing of a PyTorch that is not there.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Read while Triton is imported, whoever does that first: its kernels and its own library are interpreted.
os.environ["TRITON_INTERPRET"] = "1"
# Most of what tests cost is compilation: LLVM optimizes nothing, here and in every process that a test starts.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
# Many tests build the same tiny step anew: they and the processes that they start share compiled programs.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parent.parent / ".pytest_cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}

from jaxrun.process.script import run_script

import jax
from forked import Ended, Forks

from jaxrun.process import notices

sys.dont_write_bytecode = False  # as just said to all processes that follow
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Slow: annotations are checked where functions of the device side are called or traced.
if os.environ.get("CHECK_TYPES"):
    install_import_hook(["altojax.device"], "type_checks.check")

# Where a test does not say how many examples it wants.
settings.register_profile("suite", max_examples=50, deadline=None)  # a busy machine makes no test fail
settings.load_profile("suite")

ROOT = Path(__file__).parent.parent
FAST_LIMIT_S = 60
"""CPU seconds that a test without a marker may take: many times what any does, on a slow and busy machine, too."""
MOST_MAPS = 25_000
"""Mappings of memory after which programs are dropped; a program has several, and Linux gives a process 65,530."""
MARKED_BY_FIXTURE = {"run_together": "hosts", "chromium": "browser", "reference_python": "slow"}

BROWSER = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
"""Flags of a Chromium that asks nobody for anything."""


def lanes(item: pytest.Item) -> set[str]:
    """Returns the markers that keep a test out of `make test-fast`."""
    return {marker.name for marker in item.iter_markers()} & {"slow", "gpu", "hosts", "browser"}


def pytest_configure(config: pytest.Config) -> None:
    """Lets beartype draw which item of a sequence it looks at."""
    if os.environ.get("CHECK_TYPES"):
        config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside strategies")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they ask for; files with marked tests go first, so that none is alone at the end."""
    for item in items:
        for fixture in MARKED_BY_FIXTURE.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(MARKED_BY_FIXTURE[fixture])
    longest = {item.path for item in items if lanes(item)}
    items.sort(key=lambda item: item.path not in longest)


def pytest_collection_finish() -> None:
    """Lets Python look for garbage seldom, not among what was imported: tracing makes many objects and few cycles."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test that is too dear to have no marker."""
    begun = sum(os.times()[:4])
    yield
    took = sum(os.times()[:4]) - begun
    if took > FAST_LIMIT_S and not lanes(item):
        pytest.fail(f"took {took:.0f} s of CPU, expected at most {FAST_LIMIT_S}, or pytest.mark.slow", pytrace=False)


@pytest.fixture(autouse=True)
def told_anew() -> None:
    """A line that is told once is told in each test that expects it, whatever ran before in the process."""
    notices._told.clear()


@pytest.fixture(scope="session")
def forgets() -> list[Callable[[], object]]:
    """What drops compiled programs that tests keep for one another."""
    return [jax.clear_caches, gc.collect]


@pytest.fixture(scope="module", autouse=True)
def few_programs(forgets: list[Callable[[], object]]) -> Iterator[None]:
    """Drops compiled programs between files of tests before the kernel refuses the process more of its memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        for forget in forgets:
            forget()


@pytest.fixture(scope="module")
def few_shapes() -> Iterator[None]:
    """Runs compile as few steps as on an accelerator, where that is dear: batches take a shape that holds them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.device.executor.compile_tokens", lambda prices: 10**9)
        yield


@pytest.fixture(scope="session")
def reference_python():
    """The interpreter of the environment that holds PyTorch, transformers and peft."""
    python = Path(os.environ.get("REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python"))
    if not python.exists():
        reason = f"no reference environment at {python}; scripts/setup/make_reference_env.sh makes it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@pytest.fixture(scope="session")
def reference(reference_python, tmp_path_factory):
    """Runs a script of tests/reference/ with that interpreter, which is started once."""
    errors = tmp_path_factory.mktemp("reference") / "errors"
    command = [str(reference_python), str(ROOT / "tests" / "reference" / "keep_running.py")]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as kept,
    ):

        def run(script: str, *arguments: object) -> str:
            late = threading.Timer(600, kept.kill)
            late.start()
            try:
                print(json.dumps([script, *map(str, arguments)]), file=kept.stdin, flush=True)
                answer = kept.stdout.readline()
            finally:
                late.cancel()
            assert answer, errors.read_text()[-4000:]
            printed, raised = json.loads(answer)
            assert raised is None, raised[-4000:]
            return printed

        yield run


@pytest.fixture(scope="module")
def chromium():
    """A browser for one file of tests."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        reason = "no chromium on PATH; scripts/setup/make_browser_env.sh looks for it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # on a machine that does much else
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def free_port():
    """Finds a TCP port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return one.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Iterator[Forks]:
    """Starts processes that have imported what a run needs, which is imported once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with Forks(tmp_path_factory.mktemp("forks"), shared) as made:
        yield made


@pytest.fixture(scope="session")
def run_together(forks, free_port):
    """Runs a program in several processes of one group: arguments and a folder of each, devices of each."""

    def run(program: str, arguments: list[list[object]], folders: list[Path], devices: int = 1) -> list[Ended]:
        shared = {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "JAX_NUM_PROCESSES": str(len(arguments)),
        }
        numbered = [shared | {"JAX_PROCESS_ID": str(one)} for one in range(len(arguments))]
        return forks.begin(program, arguments, folders, *numbered).ended()

    return run


@pytest.fixture(scope="session")
def script():
    """Loads a script, which is no package, as a fresh module."""

    def load(name: str) -> ModuleType:
        [path] = (ROOT / "scripts").rglob(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))  # where Python looks first when it runs a script
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
        return module

    return load


@pytest.fixture
def called(monkeypatch):
    """Runs a script that `script` loaded with these words, as Python does; returns its exit code."""

    def call(module: ModuleType, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
        return run_script(module.main)

    return call


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, where `make model` has fetched it."""
    path = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing; make model fetches it")
        pytest.skip(f"{path} is missing; make model fetches it")
    return path
