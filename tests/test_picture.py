"""Charts as SVG: every value at its place, every text legible and harmless."""

from xml.etree import ElementTree

import pytest

from client.picture import BOTTOM, LEFT, PANEL_HEIGHT, PANEL_WIDTH, RIGHT, TOP, Line, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*lines: Line, title: str = "speed") -> ElementTree.Element:
    panel = Panel("Throughput", "tokens/s", ("1", "8"), lines)
    return ElementTree.fromstring(draw(title, [panel], "requests"))


def points(drawing: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in drawing.iter(f"{SVG}polyline")
    ]


def test_values_are_drawn_to_scale():
    bottom = PANEL_HEIGHT - BOTTOM
    ((first, last),) = points(drawn(Line("all", (200.0, 400.0))))
    assert last[1] == pytest.approx(TOP, abs=0.1)  # the axis ends at 400
    assert bottom - first[1] == pytest.approx((bottom - TOP) / 2, abs=0.1)
    assert LEFT < first[0] < last[0] < PANEL_WIDTH - RIGHT


def test_lines_share_an_axis_that_begins_at_0():
    low, high = points(drawn(Line("p50", (1.0, 1.0)), Line("p99", (3.0, 3.0))))
    bottom = PANEL_HEIGHT - BOTTOM
    assert (bottom - high[0][1]) / (bottom - low[0][1]) == pytest.approx(3, rel=0.01)
    texts = [text.text for text in drawn(Line("p50", (3.0, 3.0))).iter(f"{SVG}text")]
    assert {"0", "1", "2", "3", "4", "requests", "p50"} <= set(texts)


def test_nothing_measured_is_no_error():
    ((first, last),) = points(drawn(Line("all", (0.0, 0.0))))
    assert first[1] == last[1] == PANEL_HEIGHT - BOTTOM


def test_texts_are_escaped_and_dark_pages_have_their_colours():
    title = "<script>alert('&')</script>"
    drawing = drawn(Line("all", (1.0, 2.0)), title=title)
    assert drawing.find(f"{SVG}title").text == title
    assert not list(drawing.iter(f"{SVG}script"))
    assert "prefers-color-scheme: dark" in drawing.find(f"{SVG}style").text


def test_long_names_stand_beside_each_other_and_large_numbers_have_all_digits():
    names = ("fast_shakespeare_char", "nanogpt_cpu")
    drawing = drawn(*(Line(name, (10_000.0, 9_999.5)) for name in names))
    texts = list(drawing.iter(f"{SVG}text"))
    first, second = (float(t.get("x")) for t in texts if t.text in names)
    assert second - first > 6.5 * len(names[0])  # pixels of 12-point letters
    assert "10,000" in {text.text for text in texts}
