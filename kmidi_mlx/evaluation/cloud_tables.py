"""The cloud ladder as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

__all__ = ["ladder_table"]


def ladder_table(result: dict[str, Any]) -> Table:
    """Return the table of all rungs.

    Args:
        result: a `Ladder` as a dictionary.
    """
    table = Table(
        title=f"{result['pairs']:,} pairs of frames, {result['songs']} songs, clouds of "
        f"{result['points']} points",
        caption="± standard error over songs. Chamfer: mean squared distances both ways, x 1000. "
        "movement: 1 is as lively as the teacher. jitter: movement the teacher does not make, "
        "x 1000. ms: a frame at batch 1; the teacher needs "
        f"{result['teacher_ms_per_frame']:.2f} for all points.",
    )
    table.add_column("")
    for name in ("Chamfer", "over network", "color MSE", "property", "movement", "jitter", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rung in result["rungs"].items():
        errors = rung["errors"]
        table.add_row(
            name,
            _estimate(errors["chamfer"], "{:.2f}"),
            _estimate(rung["over_network"], "{:+.2f}") if name != "network" else "",
            _number(errors["color_mse"], "{:.4f}"),
            _number(errors["property_error"], "{:.4f}"),
            _number(errors["movement"], "{:.2f}"),
            _number(errors["jitter"], "{:.2f}", 1e3),
            _number(rung["ms_per_frame"], "{:.2f}"),
            style="bold" if name == "network" else None,
        )
    return table


def _estimate(value: dict[str, Any], pattern: str) -> str:
    error = _number(value["standard_error"], "{:.2f}", 1e3)
    return f"{_number(value['mean'], pattern, 1e3)} ± {error}"


def _number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "-" if value is None else pattern.format(scale * value)
