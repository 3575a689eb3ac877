"""A page is valid, escaped, readable in light and dark, and asks nobody for anything."""

import math
import re
from html.parser import HTMLParser

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from jaxrun.plots.pages import Badge, Table, render

VOID = {"meta", "br", "hr", "img", "link", "input"}
PAGE = """
{% extends "base.html.j2" %}
{% from "parts.html.j2" import details, facts, figure, section, table %}
{% block contents %}<a href="#here">{{ text }}</a>{% endblock %}
{% block main %}
{% call section("here", text) %}
<p>{{ text }}</p>
{{ facts({text: text}) }}
{{ table(rows) }}
{{ figure({"svg": svg, "caption": text}) }}
{% call details(text) %}<pre><code>{{ text }}</code></pre>{% endcall %}
{% endcall %}
{% endblock %}
"""


class Reader(HTMLParser):
    """Checks that tags nest, and collects text, ids and what could leave the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of packages, each with templates of its own."""
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def page_of(packages, name: str, template: str, **content) -> str:
    (packages / name / "templates").mkdir(parents=True, exist_ok=True)
    (packages / name / "__init__.py").touch()
    (packages / name / "templates" / "page.html.j2").write_text(template)
    return render(name, "page.html.j2", **content)


@pytest.fixture(scope="module")
def everything(packages):
    """Makes a page that has a text in every place where a caller can put one."""

    def make(text: str) -> str:
        rows = Table([text], [[text], [Badge(text, text)]], best=1)
        content = {"title": text, "subtitle": text, "text": text, "rows": rows, "svg": Markup("<svg></svg>")}
        return page_of(packages, "of_all", PAGE, **content)

    return make


@pytest.fixture(scope="module")
def table(packages):
    """Makes a table."""

    def make(*args, **kinds) -> str:
        template = '{% from "parts.html.j2" import table %}{{ table(rows) }}'
        return page_of(packages, "of_table", template, rows=Table(*args, **kinds))

    return make


@settings(deadline=None)
@given(st.text(min_size=1))
def test_whatever_is_put_in_stays_text(everything, text):
    page = everything(text)
    assert {tag for tag, _ in Reader(page).tags} == {tag for tag, _ in Reader(everything("x")).tags}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", page), "a control character"


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", '" onload="x', "'><img src=x>", "</style>", "&lt;"])
def test_markup_in_names_is_shown_not_run(everything, attack):
    reader = Reader(everything(attack))
    assert reader.text.count(attack) >= 9
    assert not [attributes for _, attributes in reader.tags if "onload" in attributes or "src" in attributes]


def test_nothing_is_fetched_from_anywhere(everything):
    text = everything("x")
    reader = Reader(text)
    assert reader.values("src") == []
    assert all(target.startswith("#") for target in reader.values("href"))
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert any("default-src 'none'" in content for content in reader.values("content"))


def test_what_is_not_given_is_no_blank(packages):
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        page_of(packages, "of_nothing", '{% extends "base.html.j2" %}')


def test_cells_are_written_for_people_and_sorted_by_value(table):
    cells = [1234567, 3e-4, 1.014232e304, 4651.2, 0.123456, 0.0, math.nan, math.inf, -math.inf, None]
    text = table(["value"], [[cell] for cell in cells])
    shown = re.findall(r"<td[^>]*>(?:<span[^>]*>)?([^<]*)", text)
    assert shown == ["1,234,567", "3e-4", "1.014e304", "4,651", "0.1235", "0", "NaN", "∞", "−∞", "–"]
    sorts = re.findall(r'data-value="([^"]*)"', text)
    assert [float(value) for value in sorts[:6]] == cells[:6]
    assert sorts[6:] == ["NaN", "Infinity", "-Infinity"]
    assert 'class="number"' in text
    assert 'class="number"' not in table(["value"], [[1], ["word"], [True]])
    assert "yes" in table(["value"], [[True]]) and "data-value" not in table(["value"], [[True]])


def test_tables_without_rows_and_without_sorting(table):
    assert "nothing yet" in table(["a", "b"], [])
    assert "<button" in table(["a"], [[1]]) and "<button" not in table(["a"], [[1]], sortable=False)
    with pytest.raises(ValueError, match="row 0 has 1 cells, expected 2"):
        table(["a", "b"], [[1]])


def test_the_best_row_stands_out(table):
    assert table(["a"], [[1], [2]], best=1).count('<tr class="best">') == 1
    assert table(["a"], [[1], [2]], best=0).count('<tr class="best">') == 1
    assert '<tr class="best">' not in table(["a"], [[1], [2]])


def test_a_badge_has_its_colour_or_that_of_the_text(table):
    assert '<i style="background: #0072B2"></i>x<' in table(["a"], [[Badge("x", "#0072B2")]])
    assert '<i style="background: currentColor"></i>x<' in table(["a"], [[Badge("x")]])
