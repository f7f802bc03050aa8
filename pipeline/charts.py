"""Charts of the report as inline SVG that follows the page's colours.

In: numbers and labels. Out: markup that is safe to put into a page (labels are escaped). Beside each chart the report
puts the table of the same numbers.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 220
LEFT, BOTTOM, TOP, RIGHT = 56, 30, 12, 12


def line_chart(label: str, x_name: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup:
    """Lines of (x, y) points over a common x axis; `lines` = (name, points), drawn in classes line-0, line-1, …"""
    points = [point for _, line in lines for point in line]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    body = [_axes(x_name, (x_low, x_high), (y_low, y_high), _number)]
    for index, (name, line) in enumerate(lines):
        path = " ".join(f"{_x(x, x_low, x_high):.1f},{_y(y, y_low, y_high):.1f}" for x, y in line)
        body.append(f'<polyline class="line-{index}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg(label, body)


def histogram(label: str, x_name: str, bins: Sequence[tuple[float, float, int]], marks: Sequence[tuple[str, float]]) -> Markup:
    """Bars of (low, high, count) on a logarithmic x axis, with named vertical `marks`."""
    x_low, x_high = math.log(bins[0][0]), math.log(bins[-1][1])
    top = max(count for _, _, count in bins)
    body = [_axes(x_name, (x_low, x_high), (0, top), lambda value: _number(math.exp(value)))]
    for low, high, count in bins:
        left, right = _x(math.log(low), x_low, x_high), _x(math.log(high), x_low, x_high)
        y = _y(count, 0, top)
        body.append(
            f'<rect class="bar" x="{left:.1f}" y="{y:.1f}" width="{max(right - left - 0.5, 0.5):.1f}"'
            f' height="{HEIGHT - BOTTOM - y:.1f}"><title>{_number(low)} to {_number(high)}: {count}</title></rect>'
        )
    for number, (name, value) in enumerate(marks):
        x = _x(math.log(value), x_low, x_high)
        body.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        body.append(f'<text x="{x + 3:.1f}" y="{TOP + 10 + 13 * number}">{escape(name)}</text>')
    return _svg(label, body)


def _svg(label: str, body: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(body) + "</svg>")  # every label above is escaped


def _axes(x_name: str, x: tuple[float, float], y: tuple[float, float], x_text) -> str:  # type: ignore[no-untyped-def]
    base = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT},{TOP} V{base} H{WIDTH - RIGHT}"/>']
    for share in (0.0, 0.5, 1.0):
        value = y[0] + share * (y[1] - y[0])
        parts.append(f'<text class="right" x="{LEFT - 6}" y="{_y(value, *y) + 4:.1f}">{_number(value)}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = x[0] + share * (x[1] - x[0])
        parts.append(
            f'<text text-anchor="{anchor}" x="{_x(value, *x):.1f}" y="{base + 15}">{x_text(value)}'
            f"{f' {escape(x_name)}' if share == 1.0 else ''}</text>"
        )
    return "".join(parts)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
