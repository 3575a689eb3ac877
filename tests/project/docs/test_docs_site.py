"""The site of docs/ builds without a warning and needs no network; its generated pages are those of today's code."""

import re
import warnings
from pathlib import Path

import pytest

import altojax
import pallas_kernels
import twistjax
from jaxrun.config.config_help import told
from jaxrun.config.config_keys import Ours, keys_of
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts" / "docs"


@pytest.fixture
def site_builder(script):
    return script("build_site")


@pytest.fixture
def key_pages(script):
    return script("write_key_pages")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path, monkeypatch, site_builder, called, capsys
):
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Sphinx's own code; what it says of the pages is printed
        assert called(site_builder, str(site)) == 0
    assert capsys.readouterr().err == ""
    sources = [
        path.relative_to(ROOT / "docs") for kind in ("md", "ipynb") for path in (ROOT / "docs").rglob(f"*.{kind}")
    ]
    assert not [path for path in sources if not (site / path.with_suffix(".html")).is_file()]
    loaded = [
        (page.name, address)
        for page in site.rglob("*.html")
        for address in re.findall(r"<(?:script|img|link)[^>]*\s(?:src|href)=\"([a-z]*:?//[^\"]*)", page.read_text())
    ]
    assert not loaded
    api = (site / "reference" / "api.html").read_text()
    for library in (altojax, twistjax, pallas_kernels):
        exported = {f"{library.__name__}.{name}" for name in library.__all__ if not name.startswith("__")}
        assert not {name for name in exported if f'id="{name}"' not in api}
    assert "lora_rank" in (site / "searchindex.js").read_text()


def test_a_folder_that_is_no_site_is_left_as_it_is(tmp_path, site_builder):
    (tmp_path / "thesis.md").touch()
    with pytest.raises(UserError, match="is no site"):
        site_builder.build(tmp_path)
    assert (tmp_path / "thesis.md").exists()


def test_links_of_the_repository_lead_to_pages_of_the_site_or_are_names(site_builder):
    page = "[a](../../README.md#install) [b](data.md) [c](../../altojax/cli.py) [scripts/launch](../../scripts/launch)"
    shown = "[a](../quick-start.md#install) [b](data.md) c (`altojax/cli.py`) scripts/launch"
    assert site_builder.relinked(page, "docs/how-to/tune.md", "how-to/tune.md") == shown
    readme = "![picture](docs/figures/picture.svg) [log](docs/measured/log.md)\n```sh\n[d](docs/x.md)\n```\n"
    shown = readme.replace("docs/figures", "figures").replace("docs/measured", "measured")
    assert site_builder.relinked(readme, "README.md", "quick-start.md") == shown


@pytest.mark.parametrize("program", ["altojax", "twistjax"])
def test_the_page_of_keys_is_that_of_the_code(program, key_pages):
    page = (ROOT / "docs" / "reference" / f"{program}-keys.md").read_text()
    assert page == key_pages.page(program), "expected what `make keys` writes"


def test_names_that_tools_are_said_to_use_are_keys_or_stand_for_one(key_pages):
    known = set()
    for verbs in key_pages.PROGRAMS.values():
        for section in {key.section for verb in verbs.values() for model in verb.models() for key in keys_of(model)}:
            known |= {*section.model_fields, *section.foreign_names}
    assert len(key_pages.TOOLS) > 80
    assert not set(key_pages.TOOLS) - known


@pytest.mark.parametrize("program", ["altojax", "twistjax"])
def test_every_key_and_what_others_call_it_is_on_the_page_of_keys(program, key_pages):
    page, seen = key_pages.page(program), 0
    models = {model for verb in key_pages.PROGRAMS[program].values() for model in verb.models()}
    for section in {key.section for model in models for key in keys_of(model)}:
        for name, entry in told(section).items():
            rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
            assert any(f" {entry.meaning.replace('|', chr(92) + '|')} |" in row for row in rows), (section, name)
            seen += 1
        for name, meant in section.foreign_names.items():
            key = (Ours(meant) if isinstance(meant, str) else meant).key.rpartition(".")[2]
            assert not key or re.search(rf"^\| `{key}` .*`{name}`", page, re.MULTILINE), (section, name)
    assert seen > 50
