"""Gantt charts of few and of thousands of blocks."""

import pytest

from jaxrun.plots.gantt import GanttBlock, gantt
from jaxrun.plots.plots import as_svg


def shown(blocks: list[GanttBlock]) -> tuple[str, int]:
    figure = gantt(blocks, [("a", 4), ("b", 4)], title="who ran", mark=("bound", 9.0))
    (collection,) = figure.axes[0].collections
    return as_svg(figure), len(collection.get_paths())


def test_names_are_written_where_they_fit():
    blocks = [
        GanttBlock(0, 2, 0.0, 8.0, "long", "x"),
        GanttBlock(2, 1, 0.0, 0.1, "short", "y"),
        GanttBlock(4, 4, 1.0, 9.0, group="x"),
    ]
    text, count = shown(blocks)
    assert count == 3 and ">long<" in text and ">short<" not in text and ">bound<" in text


@pytest.mark.parametrize("count", [0, 5000])
def test_none_or_thousands_can_be_drawn(count):
    text, drawn = shown([GanttBlock(at % 8, 1, at / 8, at / 8 + 1, f"n{at}", "x") for at in range(count)])
    assert drawn == count and ">n0<" not in text


def test_names_are_text():
    assert "&lt;b&gt;" in shown([GanttBlock(0, 4, 0.0, 9.0, "<b>", "x")])[0]
