"""Line and bar charts as inline SVG: no script, no network, nothing shown by colour alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reidguard.errors import InputError
from reidguard.report.html import render

__all__ = ["bar_chart", "line_chart", "line_svg"]

Point = tuple[float, float]

WIDTH, HEIGHT = 480, 300  # small, so that its text is still readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 10, HEIGHT - 48  # of the plot area
MARKED = 24  # points; with more, markers would hide the line
BINS = 200  # points of a line; more are averaged

# Dashes and marker of each line; its colour is that of the style sheet's class s1, s2, ...
LINES = (
    ("", "circle"),
    ("7 4", "square"),
    ("2 3", "triangle"),
    ("9 3 2 3", "diamond"),
    ("4 2", "circle"),
)

BAR, BAR_GAP, GROUP_LABEL, GROUP_GAP = 16, 3, 20, 14  # heights in a bar chart
BARS_RIGHT = WIDTH - 52  # room for a value at the end of the longest bar


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    from_zero: bool = False,
) -> str:
    """Return a chart with a line for each series, as HTML with an inline SVG.

    A line of more than 200 points is shown as the means of 200 equal parts.

    Args:
        title: Caption, also the accessible name.
        x_label: Of the horizontal axis, with its unit.
        y_label: Of the vertical axis, with its unit.
        series: Up to five lines by name; points (x, y) from left to right.
        from_zero: Whether the vertical axis starts at zero.

    Raises:
        InputError: If there is no point, a value is not finite, or there are too many lines.

    Example:
        >>> chart = line_chart("mAP falls", "ε", "mAP", {"meta": [(0, 75.0), (8, 3.0)]})
        >>> "<title>mAP falls</title>" in chart, chart.count("<path")
        (True, 1)
    """
    values = _line_values(title, x_label, y_label, series, from_zero)
    return render("line_chart.html.j2", **values).strip()


def line_svg(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    from_zero: bool = False,
) -> str:
    """Return the chart of :func:`line_chart` as an SVG file, with title and legend.

    Arguments and errors are those of :func:`line_chart`.

    Example:
        >>> chart = line_svg("mAP falls", "ε", "mAP", {"meta": [(0, 75.0), (8, 3.0)]})
        >>> chart.startswith("<svg"), ">meta</text>" in chart
        (True, True)
    """
    values = _line_values(title, x_label, y_label, series, from_zero)
    return render("line_chart.svg.j2", **values)


def _line_values(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    from_zero: bool,
) -> dict[str, Any]:
    """Return what the templates of a line chart show."""
    lines = {name: _averaged(points) for name, points in series.items() if points}
    values = [value for points in lines.values() for point in points for value in point]
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"the chart {title!r} needs points, and all of them finite")
    if len(lines) > len(LINES):
        raise InputError(f"a chart shows up to {len(LINES)} lines, not {len(lines)}: make several")
    x_ticks, y_ticks = _ticks(values[::2], 6), _ticks(values[1::2] + [0.0] * from_zero, 5)

    def x_position(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * _fraction(x, x_ticks), 1)

    def y_position(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * _fraction(y, y_ticks), 1)

    drawn = [
        {
            "name": name,
            "points": [(x_position(x), y_position(y)) for x, y in points],
            "markers": len(points) <= MARKED,
            "series": number,
            "dash": dash,
            "shape": shape,
        }
        for number, ((name, points), (dash, shape)) in enumerate(
            zip(lines.items(), LINES, strict=False), 1
        )
    ]
    return {
        "title": title,
        "description": _description(lines, x_label, y_label),
        "x_label": x_label,
        "y_label": y_label,
        "x_ticks": [(x_position(x), _number(x)) for x in x_ticks],
        "y_ticks": [(y_position(y), _number(y)) for y in y_ticks],
        "lines": drawn,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": BOTTOM,
    }


def bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return a chart of horizontal bars: for each group one bar a series, its value at its end.

    Args:
        title: Caption, also the accessible name.
        unit: What the values are, with their unit, such as "mAP in %".
        groups: For each group the values by series, at least 0. The first series has plain bars,
            the second hatched ones.

    Raises:
        InputError: If there is no value, one is negative or not finite, or there are more than two
            series.

    Example:
        >>> chart = bar_chart("mAP", "mAP in %", {"source": {"clean": 75.0, "attacked": 3.0}})
        >>> "source: clean 75, attacked 3." in chart
        True
    """
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    every = [value for values in groups.values() for value in values.values()]
    if not every or not all(math.isfinite(value) and value >= 0 for value in every):
        raise InputError(f"the chart {title!r} needs values, and all of them finite and at least 0")
    if len(series) > 2:
        raise InputError(f"a bar chart shows up to 2 series, not {len(series)}: make several")
    ticks = _ticks([0.0, *every], 5)
    top = TOP
    drawn: list[dict[str, Any]] = []
    for group, values in groups.items():
        bars = [
            {
                "y": top + GROUP_LABEL + place * (BAR + BAR_GAP),
                "width": round(BARS_RIGHT * _fraction(value, ticks), 1),
                "value": _number(round(value, 1)),
                "series": series.index(name) + 1,
            }
            for place, (name, value) in enumerate(values.items())
        ]
        drawn.append({"name": group, "y": top + GROUP_LABEL - 6, "bars": bars})
        top += GROUP_LABEL + len(bars) * (BAR + BAR_GAP) + GROUP_GAP
    words = "; ".join(
        f"{group['name']}: "
        + ", ".join(f"{series[one['series'] - 1]} {one['value']}" for one in group["bars"])
        for group in drawn
    )
    return render(
        "bar_chart.html.j2",
        title=title,
        description=f"{unit}. {words}.",
        unit=unit,
        series=series,
        groups=drawn,
        ticks=[(round(BARS_RIGHT * _fraction(tick, ticks), 1), _number(tick)) for tick in ticks],
        width=WIDTH,
        height=top + 36,
        top=TOP,
        bottom=top,
        bar=BAR,
    ).strip()


def _description(lines: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Return the ends of each line in words."""
    ends = [
        f"{name}: {_number(points[0][1])} at {_number(points[0][0])}, {_number(points[-1][1])} at "
        f"{_number(points[-1][0])}"
        for name, points in lines.items()
    ]
    return f"{y_label} over {x_label}. " + "; ".join(ends) + "."


def _averaged(points: Sequence[Point]) -> list[Point]:
    if len(points) <= BINS:
        return list(points)
    bounds = [len(points) * i // BINS for i in range(BINS + 1)]
    bins = [points[start:stop] for start, stop in itertools.pairwise(bounds)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def _ticks(values: Sequence[float], count: int) -> list[float]:
    """Return about ``count`` evenly spaced round numbers that enclose the values."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - abs(low or 1.0) / 2, high + abs(high or 1.0) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _fraction(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
