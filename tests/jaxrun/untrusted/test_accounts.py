"""Whoever acts as another user has that user's rights and no more, and a thread gets its own back."""

import os
import pwd
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxrun.process.errors import UserError
from jaxrun.untrusted.accounts import Account, command_as, files_as

NOBODY = pwd.getpwnam("nobody").pw_uid
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user, which only root can")


@pytest.fixture
def folder():
    """A folder that others may enter, with a secret of root's."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        (Path(made) / "secret").write_text("root's")
        (Path(made) / "secret").chmod(0o600)
        yield Path(made)


def test_a_number_without_an_account_is_refused():
    with pytest.raises(UserError, match="user 4000000: has no account on this host"):
        Account.of(4000000)


@as_root
def test_a_thread_touches_files_as_the_user_and_other_threads_do_not(folder):
    with ThreadPoolExecutor(1) as other:
        other.submit(int).result()  # a thread has the rights of who starts it
        with files_as(Account.of(NOBODY)):
            with pytest.raises(PermissionError):
                (folder / "secret").read_text()
            (folder / "mine").touch()
            assert other.submit((folder / "secret").read_text).result() == "root's"
    assert (folder / "secret").read_text() == "root's"
    assert (folder / "mine").stat().st_uid == NOBODY


@as_root
def test_groups_of_a_thread_are_the_users_and_come_back(folder):
    os.chown(folder / "secret", 0, os.getgid())
    (folder / "secret").chmod(0o640)
    before = os.getgroups()
    with pytest.raises(ZeroDivisionError), files_as(Account.of(NOBODY)):
        assert os.getgroups() == list(Account.of(NOBODY).groups)
        with pytest.raises(PermissionError):
            (folder / "secret").read_text()
        _ = 1 / 0
    assert os.getgroups() == before and (folder / "secret").read_text() == "root's"


@as_root
def test_a_command_runs_as_the_user_for_good(folder):
    account = Account.of(NOBODY)
    script = "id -u; id -g; id -G; umask; pwd; cat secret 2>/dev/null || echo refused"
    done = subprocess.run(command_as(account, ["sh", "-c", script]), capture_output=True, text=True, check=True)
    groups = " ".join(map(str, account.groups))
    assert done.stdout.split("\n")[:-1] == [str(NOBODY), str(account.gid), groups, "0077", "/", "refused"]


@as_root
def test_a_program_that_the_user_may_not_run_is_said_in_one_line(folder):
    (folder / "secret").chmod(0o700)
    command = command_as(Account.of(NOBODY), [str(folder / "secret")])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{folder}/secret: cannot be run by user {NOBODY} (Permission denied), expected")
