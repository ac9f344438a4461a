"""The losses of a run as a picture: an SVG that any browser and any Markdown viewer shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["draw_curves", "read_losses", "read_peak_gb"]

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 20, 40
# more would crowd the picture
_MOST_TICKS = 6
# told apart also by who sees no colours: one has dots
_STYLES = {
    "training": 'stroke="#7a8ba8" stroke-width="1.2"',
    "held out": 'stroke="#c2410c" stroke-width="2.4"',
}

Points = list[tuple[int, float]]


def read_losses(metrics: Path) -> dict[str, Points]:
    """Read step and loss of the log lines (`training`) and evaluations (`held out`) of a run."""
    found: dict[str, Points] = {"training": [], "held out": []}
    for row in _rows(metrics):
        for name, key in (("training", "loss"), ("held out", "val_loss")):
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found[name].append((int(row["step"]), float(value)))
    return found


def read_peak_gb(metrics: Path) -> float:
    """Read the most memory, in GB, that the framework ever took in a run; 0.0: nobody said."""
    told = [row.get("peak_memory_gb") for row in _rows(metrics)]
    return max((float(value) for value in told if isinstance(value, int | float)), default=0.0)


def _rows(metrics: Path) -> Iterator[dict[str, Any]]:
    if not metrics.exists():
        return
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # cut short by a crash


def draw_curves(losses: dict[str, Points], title: str, unit: str) -> str:
    """Return curves over steps as SVG.

    Args:
        losses: points by the name of their curve, `training` and `held out`.
        title: of the picture.
        unit: of the losses.
    """
    points = [point for curve in losses.values() for point in curve]
    if not points:
        return ""
    last = max(1, *(step for step, _ in points))
    rows = _ticks(min(loss for _, loss in points), max(loss for _, loss in points))
    columns = [step for step in _ticks(0, last, whole=True) if step <= last]
    low, high = rows[0], rows[-1]
    decimals = max(0, -math.floor(math.log10(rows[1] - rows[0]) + 1e-9))

    def place(step: float, loss: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - loss) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="11">',
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for loss in rows:
        _, down = place(0, loss)
        lines += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:.1f}" y2="{down:.1f}" '
            'stroke="#e5e7eb"/>',
            f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{loss:.{decimals}f}'
            "</text>",
        ]
    for step in columns:
        across, _ = place(step, low)
        lines.append(
            f'<text x="{across:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{step:,.0f}</text>'
        )
    for name, curve in losses.items():
        path = _path(place, curve)
        lines.append(f'<polyline fill="none" {_STYLES[name]} points="{path}"/>')
        if name == "held out":
            lines += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c2410c"/>'
                for x, y in (place(*point) for point in curve)
            ]
    lines.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{unit} over steps: grey in training, orange with '
        "dots on held-out music</text></svg>"
    )
    return "\n".join(lines) + "\n"


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers at equal distances, the first at or below `low`, the last above."""
    if low == high:
        low, high = low - 0.05 * max(abs(low), 1.0), high + 0.05 * max(abs(low), 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    sizes = [size * power for size in (1, 2, 5, 10, 20) if size * power >= 1 or not whole]
    size = next(
        size for size in sizes if math.ceil(high / size) - math.floor(low / size) <= _MOST_TICKS - 1
    )
    return [number * size for number in range(math.floor(low / size), math.ceil(high / size) + 1)]


def _path(place: Callable[[float, float], tuple[float, float]], curve: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
