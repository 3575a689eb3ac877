"""A path beneath a folder stays there, whatever links, dots and special files are put in its way."""

import os

import pytest

from jaxrun.files import beneath
from jaxrun.files.beneath import check_no_links, check_tree, opened_beneath
from jaxrun.process.errors import UserError


@pytest.fixture(params=["openat2", "stepwise"])
def mine(request, tmp_path, monkeypatch):
    """A folder beside somebody else's, with and without the kernel's own resolution."""
    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", -1)  # no such call
    for name in ("mine/rows", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine" / "rows" / "a.jsonl").write_text("mine")
    (tmp_path / "other" / "a.jsonl").write_text("other's")
    return tmp_path / "mine"


def read(root, path: str) -> str:
    with opened_beneath(root, path, os.O_RDONLY) as descriptor:
        return os.read(descriptor, 100).decode()


def test_what_lies_beneath_is_opened(mine):
    assert read(mine, "rows/a.jsonl") == read(mine, "./rows//a.jsonl") == "mine"
    check_tree(mine, "rows", 10)
    check_tree(mine, "", 10)
    check_no_links(mine, "rows/new/deeper")
    with pytest.raises(FileNotFoundError):
        read(mine, "rows/b.jsonl")


@pytest.mark.parametrize("path", ["../other/a.jsonl", "rows/../../other/a.jsonl", "/etc/passwd", "out/a.jsonl", "file"])
def test_no_path_leads_out(mine, path):
    (mine / "out").symlink_to("../other")
    (mine / "file").symlink_to(mine.parent / "other" / "a.jsonl")
    for refused in (read, check_no_links, lambda root, path: check_tree(root, path, 10)):
        with pytest.raises(UserError, match=r"leads outside|through a link|Not a directory"):
            refused(mine, path)


@pytest.mark.parametrize("target", ["../../other/a.jsonl", "/etc/passwd", "/proc/self/root/etc/passwd"])
def test_a_folder_is_refused_for_a_link_anywhere_in_it(mine, target):
    (mine / "rows" / "b.jsonl").symlink_to(target)
    with pytest.raises(UserError, match=r"b\.jsonl"):
        check_tree(mine, "", 10)


def test_a_link_that_stays_beneath_is_followed_where_the_kernel_can_tell(mine):
    (mine / "snapshot").symlink_to("rows")
    if beneath._SYS_OPENAT2 > 0:
        assert read(mine, "snapshot/a.jsonl") == "mine"
        check_tree(mine, "snapshot", 10)
    else:
        with pytest.raises(UserError, match="snapshot"):
            read(mine, "snapshot/a.jsonl")
    with pytest.raises(UserError, match="through a link"):
        check_no_links(mine, "snapshot/new")


def test_folders_without_end_and_special_files_are_refused(mine):
    with pytest.raises(UserError, match="more than 2 files"):
        check_tree(mine, "", 2)
    os.mkfifo(mine / "rows" / "pipe")
    with pytest.raises(UserError, match="pipe: is no plain file"):
        check_tree(mine, "rows", 10)


def test_a_folder_whose_part_is_a_file_cannot_be_made(mine):
    with pytest.raises(UserError, match="Not a directory"):
        check_no_links(mine, "rows/a.jsonl/run")
    with pytest.raises(UserError, match="leads outside"):
        check_no_links(mine, "new/../../other")
