"""Line charts as inline SVG: no script, no network, and nothing told by colour alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

from reidguard.errors import InputError

__all__ = ["line_chart"]

Point = tuple[float, float]

WIDTH, HEIGHT = 480, 300  # small, so that its text is still readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 48
MARKED = 24  # points; with more, markers would hide the line
BINS = 200  # points of a line; more are averaged

# Okabe and Ito's colours that are dark enough on white. Dashes and markers differ, too.
LINES = (
    ("#0072b2", "", "circle"),
    ("#d55e00", "7 4", "square"),
    ("#00805e", "2 3", "triangle"),
    ("#a3527e", "9 3 2 3", "diamond"),
    ("#1b1b1b", "4 2", "circle"),
)


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    from_zero: bool = False,
) -> str:
    """Return a chart with a line for each series.

    A line of more than 200 points is shown as the means of as many equal parts.

    Args:
        title: What the chart shows, for everyone: also its name for those who cannot see it.
        x_label: Of the axis below, with its unit.
        y_label: Of the axis at the left, with its unit.
        series: Up to five lines by name; points (x, y) from left to right.
        from_zero: Whether the left axis starts at zero.

    Raises:
        InputError: If there is no point, a value is not finite, or there are too many lines.

    Example:
        >>> chart = line_chart("mAP falls", "ε", "mAP", {"meta": [(0, 75.0), (8, 3.0)]})
        >>> "<title>mAP falls</title>" in chart, chart.count("<path")
        (True, 1)
    """
    lines = {name: _averaged(points) for name, points in series.items() if points}
    values = [value for points in lines.values() for point in points for value in point]
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"the chart {title!r} needs points, and all of them finite")
    if len(lines) > len(LINES):
        raise InputError(f"a chart shows up to {len(LINES)} lines, not {len(lines)}: make several")
    x_ticks = _ticks([x for points in lines.values() for x, _ in points], 6)
    heights = [y for points in lines.values() for _, y in points]
    y_ticks = _ticks([0.0, *heights] if from_zero else heights, 5)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _part(x, x_ticks)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(y, y_ticks)

    drawn = []
    for y in y_ticks:
        drawn.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" '
            f'class="grid"/><text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">'
            f"{_number(y)}</text>"
        )
    for x in x_ticks:
        foot = HEIGHT - BOTTOM
        drawn.append(
            f'<line x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{foot}" y2="{foot + 4}" '
            f'class="axis"/><text x="{across(x):.1f}" y="{foot + 18}" text-anchor="middle">'
            f"{_number(x)}</text>"
        )
    drawn.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" '
        f'class="axis"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = []
    for (name, points), (colour, dash, shape) in zip(lines.items(), LINES, strict=False):
        at = [(across(x), down(y)) for x, y in points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        stroke = f'stroke="{colour}" stroke-width="2" fill="none" stroke-dasharray="{dash}"'
        drawn.append(f'<path d="{path}" {stroke}/>')
        marked = len(points) <= MARKED
        if marked:
            drawn += [_marker(shape, x, y, colour) for x, y in at]
        sign = _marker(shape, 14, 7, colour) if marked else ""
        legend.append(
            f'<span><svg width="28" height="14" aria-hidden="true"><line x1="0" x2="28" y1="7" '
            f'y2="7" {stroke}/>{sign}</svg> {escape(name)}</span>'
        )
    return (
        f'<figure class="chart">\n<figcaption>{escape(title)}</figcaption>\n'
        f'<div class="legend">{"".join(legend)}</div>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(_told(lines, x_label, y_label))}</desc>\n"
        + "\n".join(drawn)
        + "\n</svg>\n</figure>"
    )


def _told(lines: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """The chart in words."""
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
    parts = [points[start:stop] for start, stop in itertools.pairwise(bounds)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _ticks(values: Sequence[float], wanted: int) -> list[float]:
    """Round numbers at equal distances, from not above the least to not below the largest."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - abs(low or 1.0) / 2, high + abs(high or 1.0) / 2
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _part(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _marker(shape: str, x: float, y: float, colour: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "triangle": ((0, -5), (4.5, 4), (-4.5, 4)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }[shape]
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'
