"""Locates a model's files: a folder, a .gguf file, or the Hugging Face hub's local copy of a repository."""

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from jaxrun.files.foreign_files import check_regular
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest

REFUSED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]
_TIMEOUT_S = 10.0


def find_model(source: str | Path, *, weights: bool = True) -> Path:
    """The folder or .gguf file that `source` names; a hub id is downloaded, or found in the local cache.

    Of a hub repository only JSON, safetensors and tokenizer files are fetched: nothing that could run.

    Args:
        source: A folder, a ``.gguf`` file, or a hub id such as ``owner/name``.
        weights: Whether the weights are wanted too.

    Raises:
        UserError: There is no such model, its format is refused, or the hub cannot be reached.
    """
    path = from_home(source)
    if path.suffix in REFUSED:
        raise UserError(f"{source}: a {path.suffix} file is a pickle that can run code, expected safetensors or GGUF")
    if path.is_dir():
        return path
    if os.path.lexists(path):
        check_regular(path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise UserError(f"{source}: not a model, expected a folder with config.json, a .gguf file or a hub id")
    name = str(source)
    if name.startswith((".", "~", os.sep)) or path.suffix == ".gguf" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{source}: no such file or folder{nearest(path.name, beside)}, expected a model")
    try:
        return Path(_download(name, weights))
    except Exception as error:  # the hub's client and its transports raise a dozen unrelated types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{source}: no such folder, and the hub has no such model or cannot be reached ({reason}); "
            "expected a folder with config.json, a .gguf file or a hub id"
        ) from error


def _download(name: str, weights: bool) -> str:
    wanted = _WANTED if weights else [pattern for pattern in _WANTED if pattern != "*.safetensors"]
    try:
        # Asks once: the download tries an unreachable hub again and again for half a minute.
        huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except Exception as error:  # as above
        try:
            return huggingface_hub.snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    return huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNWANTED)
