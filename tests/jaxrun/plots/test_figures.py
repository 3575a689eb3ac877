"""Figures take 0, 4 or 400 of anything, finite or not, draw no warning and look the same each time."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from jaxrun.plots.plot_style import colours_of, compact
from jaxrun.plots.plots import (
    PALETTE,
    Column,
    Series,
    Span,
    as_svg,
    bars,
    loss_curves,
    parallel_coordinates,
    save,
    timeline,
)

NASTY = [1.0, math.nan, math.inf, -math.inf, 0.0, -1.0, 1e12, 1.7e308, -1.7e308, 5e-324]


def words(figure) -> str:
    return " ".join(ElementTree.fromstring(as_svg(figure)).itertext())


def curves(count: int, length: int = 5) -> list[Series]:
    x = np.arange(1, length + 1)
    return [
        Series(x * 100, 2 + index / count + 1 / x, f"group {index % 3}", f"trial {index}") for index in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 4, 400])
def test_curves_are_coloured_by_group_whatever_their_number(count):
    figure = loss_curves(curves(count), title="Loss $x_i$ <&>", reference=("base model", 2.5))
    shown = words(figure)
    assert "Loss $x_i$ <&>" in shown
    for group in range(min(count, 3)):
        assert f"group {group} ({len(range(group, count, 3))})" in shown
    assert "trial 0" not in shown, "only emphasised curves are named"
    assert len(figure.axes[0].get_legend().get_texts()) == min(count, 3)


def test_the_emphasised_curve_is_named():
    assert "the best" in words(loss_curves([*curves(4), Series([1, 2], [1, 2], "group 0", "the best", True)]))


@pytest.mark.parametrize("log_y", [False, True])
def test_curves_take_anything_a_run_can_measure(log_y):
    series = [
        Series(range(len(NASTY)), NASTY, "a", "x", True),
        Series([], [], "b"),
        Series([1], [math.nan], "c"),
        Series([1, 2], [1e30, 2.0], "a"),
    ]
    for value in (math.nan, 1e304, -1.0):
        words(loss_curves(series, log_y=log_y, reference=("base", value)))


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("series", [[], [Series([1], [math.nan], "a")]])
def test_before_anything_was_measured_an_empty_figure_is_drawn(series, log_y):
    assert "perplexity" in words(loss_curves(series, log_y=log_y, y_label="perplexity"))


@pytest.mark.parametrize("log", [False, True])
def test_bars_take_any_reference(log):
    for value in (math.nan, 1e304, -1.0):
        words(bars(["one", "two"], {"a": [60.0, 4651.0], "b": [1e304, math.nan]}, log=log, reference=("full", value)))


def test_a_curve_that_blows_up_does_not_flatten_the_others():
    figure = loss_curves([*curves(30, 20), Series(range(1, 6), [2, 3, 50, 1e5, 1e9], "diverging")])
    assert figure.axes[0].get_ylim()[1] < 10
    assert "1 curve above" in words(figure)


def test_curves_of_unequal_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="expected two equal lengths"):
        loss_curves([Series([1, 2], [1.0])])


CELLS = st.one_of(
    st.integers(-5, 5), st.floats(1e-6, 1.0), st.sampled_from(["cosine", "a & b", ""]), st.booleans(), st.none()
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, st.floats()), max_size=8))
def test_parallel_coordinates_take_any_cells_and_values(rows):
    words(parallel_coordinates(["one", "two"], [row[:2] for row in rows], [row[2] for row in rows]))


def test_parallel_coordinates_take_numbers_at_the_edge():
    rows = [(number, 1e-320, 1e300) for number in NASTY]
    words(parallel_coordinates(["a", "b", "c"], rows, NASTY))
    words(parallel_coordinates(["a"], [(5e-324,), (1e-320,), (0.0,)], [5e-324, 1e-320, 0.0]))


def test_parallel_coordinates_name_axes_values_and_the_best():
    rows = [
        (1e-5, 8, "cosine", True, ("q", "v")),
        (1e-3, 16, "linear", False, "all"),
        (1e-4, 64, "linear", True, "all"),
    ]
    columns = [Column("learning_rate"), Column("rank", log=False), "schedule", "use_rslora", "modules"]
    shown = words(parallel_coordinates(columns, rows, [1.5, 1.2, math.nan], value_label="validation loss"))
    for word in ("learning_rate", "(log)", "1e-5", "64", "cosine", "yes", "no", "q, v", "validation loss", "best 1.2"):
        assert word in shown, word
    assert shown.count("(log)") == 1


def test_rows_that_were_ended_early_look_so_and_the_rest_does_not():
    rows, ended = [(1,), (2,), (3,), (4,)], ["", "behind", "", "diverging"]
    figure = parallel_coordinates(["rank"], rows, [1.0, 2.0, math.nan, 4.0], ended=ended, colours={"behind": "#123456"})
    (axes,) = figure.axes
    lines = {round(patch.get_path().vertices[0][1], 2): patch for patch in axes.patches if isinstance(patch, PathPatch)}
    dashed = {place for place, line in lines.items() if line.get_linestyle() != "solid"}
    assert dashed == {0.33, 0.67, 1.0}, "2 and 4 were ended, 3 has no value"
    assert lines[0.33].get_alpha() < lines[0.67].get_alpha()
    crosses = [one for one in axes.collections if isinstance(one, PathCollection)]
    assert [to_hex(one.get_facecolor()[0]) for one in crosses].count("#123456") == 1 and len(crosses) == 2
    shown = words(figure)
    assert all(word in shown for word in ("not ended early (2)", "behind (1)", "diverging (1)"))
    assert "ended early" not in words(parallel_coordinates(["rank"], rows, [1.0, 2.0, 3.0, 4.0]))


def test_lines_say_their_names_under_the_mouse():
    names = ['trial-1 "a" <b> & c', "trial-2"]
    curve = loss_curves([Series([1, 2], [3, 4], "a", name=names[0]), Series([1], [2], "b", name=names[1])])
    axes = parallel_coordinates(["rank"], [(8,), (16,)], [1.5, math.nan], names=names)
    for figure in (curve, axes):
        titles = ElementTree.fromstring(as_svg(figure)).iter("{http://www.w3.org/2000/svg}title")
        assert sorted(title.text for title in titles) == names
    assert "<title>" not in as_svg(loss_curves(curves(4)))


def test_many_axes_and_long_names_stay_apart_and_as_wide_as_a_page():
    columns = [f"a rather_long hyper parameter {index}" for index in range(8)]
    rows = [("warmup_stable_decay", 0.5, "q, k, v, o, gate, up, down", 1, 2, 3, 4, "x" * 40), tuple("abcdefgh")]
    figure = parallel_coordinates(columns, rows, [1.0, 2.0])
    assert figure.get_size_inches()[0] < 11.5
    figure.draw_without_rendering()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    names = [text for text in axes.texts if text.get_text().startswith("a rather")]
    boxes = [text.get_window_extent(renderer) for text in names]
    assert len(boxes) == 8 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("values", [[0.003142, 0.003356, 2.9], [1.2, 1.2], [1.0, 1.04, 1.08, 2.0], range(20)])
def test_the_best_is_named_where_no_other_value_is_written(values):
    figure = parallel_coordinates(["rank"], [(8,) for _ in values], values)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in axes.texts if text.get_text()}
    (best,) = (text for text in boxes if text.get_text().startswith("best "))
    assert not [text.get_text() for text in boxes if text is not best and boxes[text].overlaps(boxes[best])]


@pytest.mark.parametrize("lanes", [0, 1, 8, 100])
def test_timelines_take_any_number_of_lanes_in_natural_order(lanes):
    spans = [Span(f"gpu{lane}", 0.0, 10.0 + lane, "long enough?", f"g{lane % 2}") for lane in reversed(range(lanes))]
    figure = timeline([*spans, Span("never", math.nan, 1.0)], title="Slots")
    shown = words(figure)
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert ticks == sorted(ticks, key=lambda name: int(name[3:])) and "never" not in shown
    assert ("long enough?" in shown) == (0 < lanes <= 64)


def test_labels_are_written_only_where_they_fit():
    shown = words(timeline([Span(0, 0, 100, "wide"), Span(0, 100, 101, "narrow"), Span(1, 5, 5, "no width")]))
    assert "wide" in shown and "narrow" not in shown and "no width" not in shown


@pytest.mark.parametrize("log", [False, True])
def test_bars_write_their_values(log):
    figure = bars(
        ["math", "code & chat"],
        {"alone": [1.0, math.nan], "batched": [2500.0, 3.0]},
        value_label="samples per second",
        log=log,
        reference=("target", 2.0),
    )
    shown = words(figure)
    for word in ("math", "code & chat", "2.5k", "none", "alone", "batched", "target", "samples per second"):
        assert word in shown, word
    huge = words(bars(["e^700", "e^800", "e^3"], {"perplexity": [1.01e304, math.inf, 20.0]}, log=log))
    assert huge.count("too large") == 2 and "20" in huge and "none" not in huge
    words(bars([], {}))
    words(bars([str(index) for index in range(len(NASTY))], {"x": NASTY}, log=log))


def test_svg_is_the_same_each_time_themed_and_free_of_the_outside():
    figure = loss_curves(curves(5), title="a")
    svg = as_svg(figure, 'what "it" <shows>')
    assert svg == as_svg(figure, 'what "it" <shows>')
    assert svg == as_svg(loss_curves(curves(5), title="a"), 'what "it" <shows>')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'what "it" <shows>'
    assert root.get("width") is None and root.get("viewBox")
    for variable in ("--plot-ink", "--plot-muted", "--plot-grid"):
        assert f"var({variable}, #" in svg
    assert "<style" not in svg and "<metadata" not in svg and "<script" not in svg
    assert all("http" not in value for element in root.iter() for value in element.attrib.values())


def test_two_figures_of_a_page_share_no_ids():
    def ids(figure):
        return {element.get("id") for element in ElementTree.fromstring(as_svg(figure)).iter()} - {None}

    one, two = ids(loss_curves(curves(5), title="one")), ids(loss_curves(curves(5), title="two"))
    assert one and two and not one & two


def test_png_is_written_whole_on_white(tmp_path):
    save(bars(["a"], {"x": [1.0]}), tmp_path / "bars.png")
    data = (tmp_path / "bars.png").read_bytes()
    assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
    assert [path.name for path in tmp_path.iterdir()] == ["bars.png"]


def test_colours_stay_with_their_group_and_never_clash_with_given_ones():
    colours = colours_of(["a", "b", "a", "c"], {"b": PALETTE[0]})
    assert colours["b"] == PALETTE[0] and len(set(colours.values())) == 3
    assert len(colours_of([str(index) for index in range(50)])) == 50


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1500, "1.5k"), (2e7, "20M"), (0.25, "0.25"), (1e-4, "1e-4"), (2.5e-5, "2.5e-5")],
)
def test_axis_numbers_are_short(value, text):
    assert compact(value) == text
    assert compact(-value) == (f"-{text}" if value else text)
