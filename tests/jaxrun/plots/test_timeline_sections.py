"""Timelines of lanes in sections, with few and with thousands of spans."""

import pytest

from jaxrun.plots.plots import Span, as_svg, timeline


def shown(spans: list[Span]) -> tuple[str, int]:
    figure = timeline(spans, [("a", 4), ("b", 4)], title="who ran", mark=("bound", 9.0))
    (collection,) = figure.axes[0].collections
    return as_svg(figure), len(collection.get_paths())


def test_names_are_written_where_they_fit():
    spans = [
        Span(0, 0.0, 8.0, "long", "x", lanes=2),
        Span(2, 0.0, 0.1, "short", "y"),
        Span(4, 1.0, 9.0, group="x", lanes=4),
    ]
    text, count = shown(spans)
    assert count == 3 and ">long<" in text and ">short<" not in text and ">bound<" in text


@pytest.mark.parametrize("count", [0, 5000])
def test_none_or_thousands_can_be_drawn(count):
    text, drawn = shown([Span(at % 8, at / 8, at / 8 + 1, f"n{at}", "x") for at in range(count)])
    assert drawn == count and ">n0<" not in text


def test_names_are_text():
    assert "&lt;b&gt;" in shown([Span(0, 0.0, 9.0, "<b>", "x", lanes=4)])[0]
