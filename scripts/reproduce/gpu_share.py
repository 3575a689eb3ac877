"""The share of time in which a GPU computes, by its driver's own count."""

import os
import shutil
import subprocess
from typing import Any, Self

EVERY_MS = 500


class BusyShare:
    """Watches the GPU that this process sees first; use it as a context manager.

    Attributes:
        share: Share of the time in which at least one kernel ran, as `nvidia-smi` counts it; None without a GPU.
    """

    def __init__(self) -> None:
        """Watches nothing yet."""
        self.share: float | None = None
        self._watcher: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if shutil.which("nvidia-smi"):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
            query = [
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                f"--loop-ms={EVERY_MS}",
                f"--id={visible}",
            ]
            self._watcher = subprocess.Popen(
                ["nvidia-smi", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self._watcher is None:
            return
        self._watcher.terminate()
        told, _ = self._watcher.communicate()
        found = [int(line) for line in told.split() if line.isdigit()]
        self.share = sum(found) / len(found) / 100 if found else None
