"""A plot with two logarithmic axes, as an SVG small enough to be kept with the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 250, 20, 48
COLOURS = ("#1b6ca8", "#c0392b", "#27864a", "#8e44ad", "#b9770e", "#117a8b", "#5d6d7e", "#a0225f", "#4a5a00")
LABEL_APART = 16


def plot(lines: Mapping[str, Mapping[int, float]], across: str, up: str) -> str:
    """The SVG: a line for each name, through its points; what the axes are is written on them."""
    every = [(x, y) for points in lines.values() for x, y in points.items()]
    least_x, most_x = min(x for x, _ in every), max(x for x, _ in every)
    least_y, most_y = _decade_below(min(y for _, y in every)), _decade_below(max(y for _, y in every)) * 10

    def place(x: float, y: float) -> tuple[float, float]:
        along = math.log(x / least_x) / math.log(most_x / least_x)
        high = math.log(y / least_y) / math.log(most_y / least_y)
        return round(LEFT + along * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - high * (HEIGHT - TOP - BOTTOM), 1)

    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y in _decades(least_y, most_y):
        _, at = place(least_x, y)
        shown.append(f'<line x1="{LEFT}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}" stroke="#ddd"/>')
        shown.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{y:g}</text>')
    for x in sorted({x for x, _ in every}):
        at, _ = place(x, least_y)
        shown.append(f'<line x1="{at}" y1="{TOP}" x2="{at}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        shown.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.0f}</text>')
    shown.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    shown.append(f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">{escape(up)}</text>')
    ends = {name: place(*max(points.items())) for name, points in lines.items()}
    labels = _apart({name: y for name, (_, y) in ends.items()})
    for (name, points), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in sorted(points.items())))
        shown.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        shown += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (place(*point) for point in points.items())]
        end_x, end_y = ends[name]
        shown.append(f'<line x1="{end_x}" y1="{end_y}" x2="{end_x + 14}" y2="{labels[name]}" stroke="{colour}"/>')
        shown.append(f'<text x="{end_x + 18}" y="{labels[name] + 4}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*shown, "</svg>", ""])


def _decade_below(value: float) -> float:
    return float(10.0 ** math.floor(math.log10(value)))


def _decades(least: float, most: float) -> Sequence[float]:
    return [least * 10.0**number for number in range(round(math.log10(most / least)) + 1)]


def _apart(heights: Mapping[str, float]) -> Mapping[str, float]:
    """The same, moved down where two would be written over each other."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        last = max(height, last + LABEL_APART)
        moved[name] = round(last, 1)
    return moved
