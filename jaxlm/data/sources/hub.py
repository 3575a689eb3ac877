"""Data files of a hub data set, found and downloaded. No loading script is ever run."""

import contextlib
import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from jaxrun.process.errors import UserError

_TIMEOUT_S = 10.0
# The hub keeps a parquet copy of data sets in other formats on this branch, as config/split/0000.parquet.
_PARQUET_BRANCH = "refs/convert/parquet"


def download(
    name: str, suffixes: Sequence[str], *, split: str, config: str | None = None, revision: str | None = None
) -> tuple[Path, list[str]]:
    """Downloads one split of a data set, or finds it in the hub's cache when the hub cannot be reached.

    Args:
        name: Hub id, such as ``openai/gsm8k``.
        suffixes: Endings of the files that can be read.
        split: Such as ``train``.
        config: Such as ``main``.
        revision: Branch, tag or commit; None is the main branch, then the hub's own parquet copy.

    Returns:
        The local folder, and the files' paths within it, sorted.

    Raises:
        UserError: There is no such data set, it has no such files, or the hub cannot be reached.
    """
    files = _list_files(name, revision)
    branch = revision
    chosen = choose_files(files, suffixes, split=split, config=config)
    if not chosen and revision is None:
        with contextlib.suppress(UserError):
            copies = _list_files(name, _PARQUET_BRANCH)
            chosen = choose_files(copies, suffixes, split=split, config=config)
            files, branch = [*files, *copies], _PARQUET_BRANCH
    if not chosen:
        of = f"split '{split}'" + (f" of configuration '{config}'" if config else "")
        given = [file for file in files if file.endswith(tuple(suffixes))]
        shown = ", ".join(given[:6]) + (", ..." if len(given) > 6 else "") or "none that can be read"
        raise UserError(f"{name}: no data files for {of}, expected some among its files: {shown}")
    patterns = [glob.escape(file) for file in chosen]
    try:
        folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=branch, allow_patterns=patterns)
    except Exception as error:  # the hub's client and its transports raise a dozen unrelated types
        raise _unavailable(name, error) from error
    return Path(folder), chosen


def choose_files(files: Sequence[str], suffixes: Sequence[str], *, split: str, config: str | None) -> list[str]:
    """Returns the data files whose path names the split (and the configuration), such as ``main/train-0001.parquet``.

    Where there are files of several formats, those of the most frequent one: they are copies of each other.

    Args:
        files: All paths in a data set.
        suffixes: Endings of the files that can be read.
        split: Has to stand in the path as a word; a data set of one file need not name its ``train`` split.
        config: The same, if given.
    """
    readable = sorted(file for file in files if file.endswith(tuple(suffixes)))
    words = [split] if config is None else [split, config]
    chosen = [
        file for file in readable if all(re.search(rf"(^|[/._-]){re.escape(word)}([/._-]|$)", file) for word in words)
    ]
    if not chosen and len(readable) == 1 and words == ["train"]:
        return readable
    kinds = Counter(_format(file) for file in chosen)
    return [file for file in chosen if _format(file) == kinds.most_common(1)[0][0]]


def _format(file: str) -> str:
    """Returns a file's ending, without that of its compression."""
    return PurePosixPath(file.removesuffix(".gz")).suffix


def _list_files(name: str, revision: str | None) -> list[str]:
    """Asks once: the client's other calls try an unreachable hub again and again for half a minute."""
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT_S)
        return [file.rfilename for file in info.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unavailable(name, error) from error
    except Exception as error:  # as above
        try:
            folder = huggingface_hub.snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True
            )
        except Exception:
            raise _unavailable(name, error) from error
        return [str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()]


def _unavailable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{name}: no such file, and the hub has no such data set or cannot be reached ({reason})")
