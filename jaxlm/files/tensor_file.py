"""A safetensors file written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

_CODE = re.compile(r"\(os error (\d+)\)")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name, marked as transformers and peft expect it.

    Args:
        path: The file.
        tensors: Its content.

    Raises:
        OSError: The system refuses it, as a full disk does, which safetensors says in words alone.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        if (said := _CODE.search(str(error))) is None:
            raise
        code = int(said[1])
        raise OSError(code, os.strerror(code), str(path)) from error
