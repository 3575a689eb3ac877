"""A page is valid, escaped, readable in light and dark, and asks nobody for anything."""

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrun.plots.html import Html, Section, badge, code, details, facts, figure, note, page, table

VOID = {"meta", "br", "hr", "img", "link", "input"}


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


def everything(text: str) -> str:
    """A page that has `text` in every place a caller can put it."""
    parts = [
        text,
        note(text),
        code(text),
        facts({text: text}),
        badge(text, text),
        details(text, [text]),
        figure("<svg></svg>", text),
        table([text], [[text], [text]], caption=text, highlight=1),
    ]
    return page(text, [Section(text, parts)] * 4, subtitle=text)


@settings(deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_whatever_is_put_in_stays_text(text):
    assert {tag for tag, _ in Reader(everything(text)).tags} == {tag for tag, _ in Reader(everything("x")).tags}


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", '" onload="x', "'><img src=x>", "</style>", "&lt;"])
def test_markup_in_names_is_shown_not_run(attack):
    reader = Reader(everything(attack))
    assert attack in reader.text
    assert not [attributes for _, attributes in reader.tags if "onload" in attributes or "src" in attributes]


def test_nothing_is_fetched_from_anywhere():
    text = everything("x")
    reader = Reader(text)
    assert reader.values("src") == []
    assert all(target.startswith("#") for target in reader.values("href"))
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert any("default-src 'none'" in content for content in reader.values("content"))


def test_headings_get_distinct_anchors_and_a_table_of_contents():
    reader = Reader(page("Run", [("Trials", ["one"]), ("trials!", []), ("", []), ("Slots", [])]))
    targets = [target[1:] for target in reader.values("href")]
    assert targets == ["trials", "trials-2", "section", "slots"]
    assert set(targets) <= set(reader.values("id"))
    assert "nav" not in {tag for tag, _ in Reader(page("Run", [("Trials", [])])).tags}


def test_cells_are_written_for_people_and_sorted_by_value():
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


def test_tables_without_rows_and_without_sorting():
    assert "nothing yet" in table(["a", "b"], [])
    assert "<button" not in table(["a"], [[1]], sortable=False)
    with pytest.raises(ValueError, match="row 0 has 1 cells, expected 2"):
        table(["a", "b"], [[1]])


def test_the_best_row_stands_out():
    assert table(["a"], [[1], [2]], highlight=1).count('<tr class="best">') == 1


def test_safe_pieces_are_not_escaped_twice():
    assert "<b>x</b>" in table(["a"], [[Html("<b>x</b>")]])
    assert "&amp;amp;" not in page("a & b", [Section("c", [badge("d & e")])])
    assert "background: #0072B2" in badge("x", "#0072B2") and "url" not in badge("x", "url(evil)")
