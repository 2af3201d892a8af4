"""Line charts as SVG text: several panels side by side, legible on light and dark pages.

Plain numbers in, a string out; nothing to install. Colours follow the reader's preference by a
media query: https://developer.mozilla.org/docs/Web/CSS/@media/prefers-color-scheme
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT = 380, 250  # pixels, with the space around the plot
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 44, 58
TICKS = 4
CHARACTER_WIDTH = 7  # at most, of most letters

# pairs that stay apart for colour-blind readers: https://jfly.uni-koeln.de/color/
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px } .page { fill: #ffffff }
.grid { stroke: #d0d7de } .axis { stroke: #57606a }
.line { fill: none; stroke-width: 2 }
.s0 { stroke: #0072b2; fill: #0072b2 } .s1 { stroke: #d55e00; fill: #d55e00 }
.s2 { stroke: #009e73; fill: #009e73 } .s3 { stroke: #cc79a7; fill: #cc79a7 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 }
  .grid { stroke: #30363d } .axis { stroke: #8b949e }
  .s0 { stroke: #56b4e9; fill: #56b4e9 } .s1 { stroke: #e69f00; fill: #e69f00 }
}
.line { fill: none }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A named series, one value for each place on the horizontal axis."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. Its vertical axis begins at 0."""

    title: str
    unit: str
    places: Sequence[str]
    """What stands below the horizontal axis, evenly spaced."""
    lines: Sequence[Line]
    """At most 4."""


def draw(title: str, panels: Sequence[Panel], horizontal: str) -> str:
    """An SVG document of the panels, side by side; `horizontal` names their common axis."""
    width, height = PANEL_WIDTH * len(panels), PANEL_HEIGHT + 30
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text class="title" x="16" y="22">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        body.append(f'<g transform="translate({number * PANEL_WIDTH},30)">')
        body += _panel(panel, horizontal)
        body.append("</g>")
    return "\n".join([*body, "</svg>", ""])


def _panel(panel: Panel, horizontal: str) -> Iterator[str]:
    top = _round_up(max((value for line in panel.lines for value in line.values), default=0.0))
    right, bottom = PANEL_WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM
    yield _text(LEFT, 16, f"{panel.title} ({panel.unit})", "start")
    for tick in range(TICKS + 1):
        y = _y(top * tick / TICKS, top)
        kind = "grid" if tick else "axis"
        yield f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(LEFT - 8, y + 4, _number(top * tick / TICKS), "end")
    for place, label in enumerate(panel.places):
        yield _text(_x(place, len(panel.places)), bottom + 18, label, "middle")
    yield _text((LEFT + right) / 2, bottom + 34, horizontal, "middle")
    legend = LEFT - 50
    for number, line in enumerate(panel.lines):
        points = [
            (_x(place, len(panel.places)), _y(value, top))
            for place, value in enumerate(line.values)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="line s{number}" points="{path}"/>'
        for (x, y), value in zip(points, line.values, strict=True):
            tip = f"<title>{escape(line.name)}: {_number(value)} {escape(panel.unit)}</title>"
            yield f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tip}</circle>'
        yield f'<circle class="s{number}" cx="{legend}" cy="{TOP - 14}" r="4"/>'
        yield _text(legend + 8, TOP - 10, line.name, "start")
        legend += 24 + len(line.name) * CHARACTER_WIDTH


def _x(place: int, count: int) -> float:
    width = PANEL_WIDTH - LEFT - RIGHT
    return LEFT + width * (place + 0.5) / count


def _y(value: float, top: float) -> float:
    bottom = PANEL_HEIGHT - BOTTOM
    return bottom - (bottom - TOP) * value / top


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten: each quarter of it is a short number."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if value <= step * power * (1 + 1e-9))


def _number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
