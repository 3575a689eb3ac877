"""GPUs of this host, and the environment that shows a worker its own and no others.

The orchestrator asks the driver's own tool: were it to ask JAX, it would hold memory on every GPU.
"""

import os
import re
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrun.process.environment import CACHE, CACHE_LEAST, CACHE_SIZE, KEPT_BYTES, KEPT_S
from jaxrun.process.errors import UserError
from jaxrun.untrusted.accounts import Account

_TOOL = "nvidia-smi"
_ASK_S = 30.0
ROOT = Path(__file__).parents[3]
"""Where this package lies."""


def host_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what CUDA_VISIBLE_DEVICES would name each GPU that is to be used here; nothing on a host without any.

    Args:
        environment: Whose CUDA_VISIBLE_DEVICES, if there is one, chooses among the host's GPUs.

    Raises:
        UserError: The driver does not answer.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name for name in (part.strip() for part in chosen.split(",")) if name not in ("", "-1"))
    return _ask("index", environment)


def host_device(environment: Mapping[str, str]) -> str:
    """Returns the kind of this host's GPUs as JAX names it too, or ``cpu`` where none is to be used.

    Raises:
        UserError: As `host_gpus`.
    """
    kinds = _ask("name", environment) if host_gpus(environment) else ()
    return kinds[0] if kinds else "cpu"


def _ask(what: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what the driver's tool says of each GPU; nothing where there is no such tool."""
    if shutil.which(_TOOL, path=environment.get("PATH")) is None:
        return ()
    command = [_TOOL, f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{_TOOL}: no answer after {_ASK_S:.0f} s, expected a driver that works") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{_TOOL}: exit code {done.returncode} ({said}), expected a driver that works")
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def gpu_environment(names: Sequence[str]) -> dict[str, str]:
    """Returns what makes a worker train on the GPUs of these names, or fail: it must not fall back to a CPU."""
    # The driver's tool counts GPUs by their place on the bus; CUDA does so only where it is configured to.
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(names),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "JAX_PLATFORMS": "cuda",
    }


def cpu_environment(count: int) -> dict[str, str]:
    """Returns what makes a worker train on so many simulated devices of a CPU."""
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}


def worker_environment(
    devices: Mapping[str, str], cache: Path | None, account: Account | None = None
) -> dict[str, str]:
    """Returns the environment of a worker: this process's own, its devices, and a cache of compiled programs.

    It has the packages that this process has, also out of a folder in which they are not installed.

    Workers take all memory of their GPUs when they begin, as JAX does by itself: nobody shares a GPU with them, and
    their budget is what they have. What one has compiled the next one of the same shapes finds in the cache.

    Args:
        devices: From `gpu_environment` or `cpu_environment`.
        cache: The folder of compiled programs that workers share; None leaves the user's own.
        account: The user as whom it runs; None is who runs this process. Another user gets what concerns devices and
            programs of this process's environment and no secret, and shares compiled programs with nobody: they are
            run as they are.
    """
    own = {name: text for name, text in os.environ.items() if name not in _OF_A_GROUP}
    if account is not None:
        own = {name: text for name, text in own.items() if name.startswith(_FOR_OTHERS) and not _SECRET.search(name)}
        own |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
        own.pop(CACHE, None)  # the worker finds the one of its user
    if path := import_path(own.get("PYTHONPATH", "")):
        own["PYTHONPATH"] = path
    own["PYTHONUNBUFFERED"] = "1"  # a log that is read while it grows, and the last line of one that was killed
    if cache is not None and account is None:
        own = {CACHE: str(cache), CACHE_SIZE: str(KEPT_BYTES), CACHE_LEAST: str(KEPT_S)} | own
    return {**own, **devices}


def import_path(given: str) -> str:
    """Returns the PYTHONPATH of a worker, which is another folder's process: ``python -P`` looks into none by itself.

    Args:
        given: This process's own, in which a folder may be relative; an empty name, its working folder, is left out.
    """
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    own = [] if str(ROOT) in map(os.path.realpath, installed) else [str(ROOT)]
    return os.pathsep.join(
        dict.fromkeys([*own, *(str(Path(one).absolute()) for one in given.split(os.pathsep) if one)])
    )


_FOR_OTHERS = (
    "PATH",
    "LANG",
    "LC_",
    "LD_LIBRARY_PATH",
    "TZ",
    "PYTHON",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "JAX_",
    "XLA_",
    "HF_",
    "TRANSFORMERS_",
    "SLURM_",
)
"""Beginnings of variables that the worker of another user takes from this process."""
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_OF_A_GROUP = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS")
"""Variables that make a process one of several: a worker has them from its engine or not at all."""
