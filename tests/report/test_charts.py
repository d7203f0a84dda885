"""Curves: points where they belong, words for those who see no picture."""

from __future__ import annotations

import re

import pytest

from reidguard.errors import InputError
from reidguard.report import bar_chart, line_chart


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'<path d="M([^"]*)"', svg)
    return [[tuple(map(float, p.split())) for p in path.split("L")] for path in paths]


def ticks(svg: str, anchor: str) -> dict[float, float]:
    """Position of each tick's label by its number."""
    axis = "x" if anchor == "middle" else "y"
    found = re.findall(rf'<text ([^>]*)text-anchor="{anchor}">([−+\de.]+)</text>', svg)
    at = {float(n.replace("−", "-")): re.search(rf'{axis}="([-\d.]+)"', a) for a, n in found}
    return {number: float(match[1]) for number, match in at.items() if match}


def test_points_lie_between_the_ticks_in_proportion():
    svg = line_chart("t", "x", "y", {"a": [(0, -3.0), (5, 7.0), (8, 2.0)]})
    (points,) = drawn(svg)
    across, down = ticks(svg, "middle"), ticks(svg, "end")
    for (x, y), (px, py) in zip([(0, -3.0), (5, 7.0), (8, 2.0)], points, strict=True):
        assert px == pytest.approx(across[0] + (across[8] - across[0]) * x / 8, abs=0.2)
        low, high = min(down), max(down)
        wanted = down[low] + (down[high] - down[low]) * (y - low) / (high - low)
        assert py == pytest.approx(wanted - 4, abs=0.2)  # labels sit 4 below their lines
    assert min(down) <= -3
    assert max(down) >= 7


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 0.0], [1e-7, 3e-7], [-2.0, 1e6]])
def test_any_range_has_ticks_around_it(values):
    svg = line_chart("t", "x", "y", {"a": list(enumerate(values))})
    for x, y in drawn(svg)[0]:
        assert 0 <= x <= 480
        assert 0 <= y <= 300
    assert len(ticks(svg, "end")) >= 2


def test_lines_differ_without_colour_and_are_told_in_words():
    svg = line_chart("T <1>", "steps", "loss & more", {"a<b": [(0, 1)], "c": [(0, 2), (1, 3)]})
    dashes = re.findall(r'<path [^>]*stroke-dasharray="([^"]*)"', svg)
    assert len(set(dashes)) == 2
    assert "<circle" in svg
    assert "<polygon" in svg
    assert "<title>T &lt;1&gt;</title>" in svg
    assert "loss &amp; more over steps. a&lt;b: 1 at 0, 1 at 0; c: 2 at 0, 3 at 1." in svg
    assert 'role="img"' in svg
    assert "://" not in svg


def test_long_lines_are_averaged():
    svg = line_chart("t", "x", "y", {"a": [(i, float(i % 2)) for i in range(1000)]})
    (points,) = drawn(svg)
    assert len(points) == 200
    assert len({y for _, y in points}) <= 2  # means of five alternating values: 0.4 and 0.6
    assert "<circle" not in svg


def test_mistakes():
    with pytest.raises(InputError, match="needs points"):
        line_chart("t", "x", "y", {"a": []})
    with pytest.raises(InputError, match="finite"):
        line_chart("t", "x", "y", {"a": [(0, float("nan"))]})
    with pytest.raises(InputError, match="up to 5 lines, not 6"):
        line_chart("t", "x", "y", {str(i): [(0, 1)] for i in range(6)})


def test_bars_are_as_long_as_their_values():
    svg = bar_chart(
        "T <1>", "mAP in %", {"a<b": {"clean": 80.0, "attacked": 20.04}, "c": {"clean": 0.0}}
    )
    bars = re.findall(r'<rect x="0" y="(\d+)" width="([\d.]+)"', svg)
    first, second, third = (float(width) for _, width in bars)
    assert second == pytest.approx(first * 20.04 / 80, abs=0.2)
    assert third == 0
    across = ticks(svg, "middle")  # the label at zero starts there
    assert first == pytest.approx(across[80], abs=0.2)
    assert [int(y) for y, _ in bars] == sorted({int(y) for y, _ in bars})
    assert "mAP in %. a&lt;b: clean 80, attacked 20; c: clean 0." in svg
    assert svg.count('class="hatch"') == 2  # of the second series: its bar, and in the legend
    assert "<title>T &lt;1&gt;</title>" in svg


def test_mistakes_of_bars():
    for values in ({}, {"a": {"x": -1.0}}, {"a": {"x": float("inf")}}):
        with pytest.raises(InputError, match="at least 0"):
            bar_chart("t", "%", values)
    with pytest.raises(InputError, match="up to 2 series, not 3"):
        bar_chart("t", "%", {"a": {"x": 1.0, "y": 1.0, "z": 1.0}})
