"""Charts of the report: figures in, markup out that follows the page's width, colours and text size.

Shapes are inline SVG that stretches with its box; labels are HTML beside it, so that they stay readable on a phone. What
is drawn is an image with one label to a screen reader: the report puts the table of the same numbers below each chart.
All text is escaped.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

from pipeline.figures import Figure, shown

BARS = 16  # of a bar chart; all rows stand in the table
TICKS = 5
ZONES = {1: ("gone", "kept"), 2: ("head", "middle", "tail")}  # of bars, by the number of marks between them
CLASSES = {"in": "in", "kept": "kept", "dropped": "gone"}  # of rows whose first cell says so


def chart(figure: Figure) -> Markup:
    """The chart of a figure that has one and rows."""
    assert figure.chart is not None and figure.rows
    draw = {"bars": _bars, "grouped": _grouped, "histogram": _histogram, "lines": _lines}[figure.chart.kind]
    return draw(figure)


def _image(figure: Figure, kind: str, body: Iterable[str], legend: Sequence[str] = (), classes: Sequence[str] = ()) -> Markup:
    label = escape(f"Chart: {figure.title}. {figure.note} The table below has the same numbers.")
    classes = classes or [f"s{n % 6}" for n in range(len(legend))]
    names = "".join(f'<span><i class="{c}"></i>{escape(name)}</span>' for name, c in zip(legend, classes, strict=False))
    if len(legend) == 1:  # bars may have other colours by row
        names = f"<span>{escape(legend[0])}</span>"
    key = f'<div class="key">{names}</div>' if names else ""
    return Markup(f'<div class="chart {kind}" role="img" aria-label="{label}">{key}{"".join(body)}</div>')


def _bars(figure: Figure) -> Markup:
    """A bar a row, of one part or several end to end; as long as the row's share of the longest."""
    spec = figure.chart
    assert spec is not None
    rows = [row for row in figure.rows if any(row[v] for v in spec.values)][:BARS]
    longest = max((sum(row[v] or 0 for v in spec.values) for row in rows), default=0) or 1
    body = []
    for row in rows:
        parts = "".join(
            f'<i class="{CLASSES.get(str(row[0]), f"s{n}")}" style="width:{100 * (row[v] or 0) / longest:.2f}%"></i>'
            for n, v in enumerate(spec.values)
        )
        texts = " + ".join(shown(row[v], figure.columns[v].kind) for v in spec.values)
        body.append(_bar_row(str(row[spec.x]), [parts], texts))
    return _image(figure, "bars", body, [figure.columns[v].name for v in spec.values])


def _grouped(figure: Figure) -> Markup:
    """Bars below each other for each row, all on one scale."""
    spec = figure.chart
    assert spec is not None
    rows = figure.rows[:BARS]
    longest = max((row[v] or 0 for row in rows for v in spec.values), default=0) or 1
    body = []
    for row in rows:
        tracks = [f'<i class="s{n}" style="width:{100 * (row[v] or 0) / longest:.2f}%"></i>' for n, v in enumerate(spec.values)]
        texts = " / ".join(shown(row[v], figure.columns[v].kind) or "?" for v in spec.values)
        body.append(_bar_row(str(row[spec.x]), tracks, texts))
    return _image(figure, "bars", body, [figure.columns[v].name for v in spec.values])


def _bar_row(name: str, tracks: Sequence[str], value: str) -> str:
    inside = "".join(f"<span>{track}</span>" for track in tracks)
    return (
        f'<div class="row"><bdi class="name">{escape(name)}</bdi><div class="track">{inside}</div><b>{escape(value)}</b></div>'
    )


def _histogram(figure: Figure) -> Markup:
    """A bar a row between its first two values; further columns are drawn over the first one."""
    spec = figure.chart
    assert spec is not None
    scale: Callable[[float], float] = (lambda value: math.log(max(value, 1e-9))) if spec.logarithmic else float
    low, high = scale(figure.rows[0][spec.x]), scale(figure.rows[-1][spec.x + 1])
    for _, value in spec.marks:
        low, high = min(low, scale(value)), max(high, scale(value))
    width = (high - low) or 1.0
    top = max(max(row[v] for row in figure.rows) for v in spec.values) or 1
    ticks = [tick for tick in _ticks(0, top) if float(tick).is_integer()]
    top = max(top, ticks[-1])

    def x(value: float) -> float:
        return 100 * (scale(value) - low) / width

    shapes = [f'<path class="grid" d="M0,{100 - 100 * tick / top:.2f}H100"/>' for tick in ticks]
    edges = sorted(value for _, value in spec.marks)
    zones = ZONES.get(len(edges), ())
    layers = ("s0",) if len(spec.values) == 1 else ("below", "s0")
    for n, v in enumerate(spec.values):
        for row in figure.rows:
            left, right = x(row[spec.x]), x(row[spec.x + 1])
            zone = sum(row[spec.x] + row[spec.x + 1] > 2 * edge for edge in edges)
            height = 100 * row[v] / top
            said = f"{_short(row[spec.x])} to {_short(row[spec.x + 1])}: {row[v]:,}"
            shapes.append(
                f'<rect class="{zones[zone] if zones else layers[n]}" x="{left:.2f}" y="{100 - height:.2f}"'
                f' width="{max(right - left, 0.15):.2f}" height="{height:.2f}"><title>{escape(said)}</title></rect>'
            )
    labels = []
    for n, (name, value) in enumerate(sorted(spec.marks, key=lambda mark: mark[1])):
        place = x(value)
        before = place > 50 if len(spec.marks) == 1 else n == 0
        shapes.append(f'<path class="mark" d="M{place:.2f},0V100"/>')
        side = f"right:{100 - place:.2f}%" if before else f"left:{place:.2f}%"
        labels.append(f'<span class="mark-name" style="{side}">{escape(name)}</span>')
    span = (math.exp(low), math.exp(high)) if spec.logarithmic else (low, high)
    x_ticks = _log_ticks(*span) if spec.logarithmic else _ticks(*span, inside=True)
    names = [(x(tick), _short(tick)) for tick in x_ticks]
    legend = [figure.columns[v].name for v in spec.values] if len(spec.values) > 1 else []
    y_names = [(100 * tick / top, _short(tick)) for tick in ticks]
    return _image(figure, "plot", _plot(shapes, labels, names, y_names), legend, layers)


def _lines(figure: Figure) -> Markup:
    """A line for each column of values over the first; values that are missing are passed over."""
    spec = figure.chart
    assert spec is not None
    lines = [
        [(row[spec.x], row[v]) for row in figure.rows if row[v] is not None and math.isfinite(row[v])] for v in spec.values
    ]
    points = [point for line in lines for point in line]
    if not points:
        return _image(figure, "plot", ["<p>No finite values.</p>"])
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    ticks = _ticks(min(p[1] for p in points), max(p[1] for p in points))
    y_low, y_high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return 100 * (value - x_low) / ((x_high - x_low) or 1)

    def y(value: float) -> float:
        return 100 * (value - y_low) / ((y_high - y_low) or 1)

    shapes = [f'<path class="grid" d="M0,{100 - y(tick):.2f}H100"/>' for tick in ticks]
    for n, line in enumerate(lines):
        if len(line) > 1:
            shapes.append(f'<polyline class="s{n % 6}" points="{" ".join(f"{x(a):.2f},{100 - y(b):.2f}" for a, b in line)}"/>')
        if len(line) <= 40:
            shapes += [f'<path class="dot s{n % 6}" d="M{x(a):.2f},{100 - y(b):.2f}h0"/>' for a, b in line]
    kind = figure.columns[spec.values[0]].kind
    x_names = [(x(tick), _short(tick)) for tick in _ticks(x_low, x_high, inside=True)]
    y_names = [(y(tick), shown(tick, kind) if kind in ("share", "bytes") else _short(tick)) for tick in ticks]
    legend = [figure.columns[v].name for v in spec.values] if len(spec.values) > 1 else []
    return _image(figure, "plot", _plot(shapes, [], x_names, y_names), legend)


def _plot(
    shapes: Iterable[str], labels: Iterable[str], x_names: Sequence[tuple[float, str]], y_names: Sequence[tuple[float, str]]
) -> list[str]:
    width = max((len(name) for _, name in y_names), default=1)
    return [
        f'<div class="y" style="width:{width}ch">',
        *(f'<span style="bottom:{place:.2f}%">{escape(name)}</span>' for place, name in y_names),
        '</div><div class="area"><svg viewBox="0 0 100 100" preserveAspectRatio="none">',
        *shapes,
        "</svg>",
        *labels,
        '</div><div class="x">',
        *(f'<span style="left:{place:.2f}%">{escape(name)}</span>' for place, name in x_names),
        "</div>",
    ]


def _ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """About TICKS round numbers from `low` to `high`, or from just outside of them."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value
        high = low + (abs(low) or 1)
    rough = (high - low) / (TICKS - 1)
    step = 10 ** math.floor(math.log10(rough))
    step = next(step * n for n in (1, 2, 2.5, 5, 10) if step * n >= rough * 0.999)
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times these where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [n * 10.0**power for power in powers for n in factors if low <= n * 10.0**power <= high]
        if len(ticks) <= TICKS + 1:
            break
    return ticks[:: max(1, -(-len(ticks) // (TICKS + 1)))]


def _short(value: float) -> str:
    """A number in few characters: 12 k, 3.5 M."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 9.995:
            return f"{value / size:.3g}{name}"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
