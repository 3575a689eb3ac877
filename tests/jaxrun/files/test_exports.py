"""An export is replaced only while it holds what an export wrote, and nothing of anybody else."""

import json
from pathlib import Path

import pytest

from jaxrun.files.exports import MANIFEST, make_way, write_export
from jaxrun.process.errors import UserError


@pytest.fixture
def out(tmp_path):
    """An export."""
    make_way(tmp_path / "new" / "out", overwrite=False)
    export(tmp_path / "new" / "out", "old")
    return tmp_path / "new" / "out"


def export(out, word):
    with write_export(out, "test export") as partial:
        (partial / "deep").mkdir()
        for name in ("a", "deep/b"):
            (partial / name).write_text(word)


def test_the_manifest_names_every_file_with_its_size(out):
    assert json.loads((out / MANIFEST).read_text()) == {"written_by": "test export", "files": {"a": 3, "deep/b": 3}}


def test_an_export_is_replaced_when_told_to(out):
    with pytest.raises(UserError, match="out: exists, expected a new folder or overwrite=true"):
        make_way(out, overwrite=False)
    (out / "a").unlink()
    make_way(out, overwrite=True)
    export(out, "new")
    assert (out / "a").read_text() == (out / "deep" / "b").read_text() == "new"


def test_an_empty_folder_is_replaced_when_told_to(tmp_path):
    (tmp_path / "out").mkdir()
    make_way(tmp_path / "out", overwrite=True)
    export(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "new"


FOREIGN = {
    "a file": (lambda out: (out / "deep" / "notes").write_text("mine"), "holds deep/notes, which no export wrote"),
    "a hidden file": (lambda out: (out / ".git").write_text("mine"), "holds .git, which no export wrote"),
    "a folder": (lambda out: (out / "mine").mkdir(), "holds mine, which no export wrote"),
    "a link": (lambda out: (out / "link").symlink_to("/"), "holds link, which no export wrote"),
    "an edited file": (lambda out: (out / "a").write_text("edited"), "a was changed since"),
    "a link for a file": (lambda out: ((out / "a").unlink(), (out / "a").symlink_to("deep/b")), "a was changed since"),
    "no manifest": (lambda out: (out / MANIFEST).unlink(), "holds a, which no export wrote"),
    "no JSON": (lambda out: (out / MANIFEST).write_text("{"), "holds a, which no export wrote"),
    "a list": (lambda out: (out / MANIFEST).write_text('{"files": ["a", "deep/b"]}'), "holds a, which no export wrote"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_anything_that_no_export_wrote_is_kept(out, name):
    change, said = FOREIGN[name]
    change(out)
    before = sorted(str(path) for path in out.rglob("*"))
    for refused in (lambda: make_way(out, overwrite=True), lambda: export(out, "new")):
        with pytest.raises(UserError) as error:
            refused()
        assert f"{out}: {said}" in str(error.value) and "not replaced" in str(error.value)
    assert sorted(str(path) for path in out.rglob("*")) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_file_or_a_link_is_no_export(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "nowhere").symlink_to("gone")
    for name, kind in (("file", "file"), ("link", "link"), ("nowhere", "link")):
        with pytest.raises(UserError, match=f"{name}: is no folder but a {kind}, expected another place"):
            make_way(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_path_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not end in the name of a folder"):
        make_way(Path(out), overwrite=True)


def test_a_folder_in_place_of_the_manifest_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match="out: is a folder, expected a file"),
        write_export(tmp_path / "out", "x") as new,
    ):
        (new / MANIFEST).mkdir()
    assert not list(tmp_path.iterdir())
