"""The results of `kmidi evaluate` as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from kmidi_mlx.evaluation.music_measures import MEASURES
from kmidi_mlx.evaluation.tally import KINDS

__all__ = ["tables_of"]

_CONTROL_ROWS = {
    "pieces": "{:.0f}",
    "valence_correlation": "{:.2f}",
    "arousal_correlation": "{:.2f}",
    "valence_error": "{:.2f}",
    "arousal_error": "{:.2f}",
    "quadrant_hits": "{:.0%}",
    "quadrant_chance": "{:.0%}",
    "violations": "{:.0f}",
    "hanging_notes": "{:.0f}",
}


def tables_of(result: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of what was measured.

    Args:
        result: what the command prints as JSON.
    """
    if result.get("likelihood"):
        yield _likelihood(result["likelihood"])
    if result.get("control"):
        yield _control(result["control"])
    if result.get("measures"):
        yield _measures(result["measures"])


def _likelihood(found: dict[str, Any]) -> Table:
    scores = found["scores"]
    any_score = next(iter(scores.values()))
    saved = found["conditions_gain"]
    table = Table(
        title=f"prediction of {any_score['events']:,} events, {any_score['notes']:,} notes, "
        f"{any_score['songs']} songs",
        caption=f"windows of {found['context']} events every {found['stride']}; conditions save "
        f"{_number(saved['nats_per_event'], '{:.4f}')} ± "
        f"{_number(saved['standard_error'], '{:.4f}')} nats per event",
    )
    table.add_column("")
    for name in scores:
        table.add_column(name, justify="right")
    columns = scores.values()
    _row(table, "nats per event", [c["nats_per_event"] for c in columns], "{:.4f}")
    _row(table, "  standard error", [c["standard_error"] for c in columns], "{:.4f}")
    _row(table, "perplexity", [c["perplexity"] for c in columns], "{:.2f}")
    _row(table, "nats per note", [c["nats_per_note"] for c in columns], "{:.3f}")
    for kind in KINDS:
        shares = [c["accuracy"][kind] for c in columns]
        _row(table, f"{_words(kind)} accuracy", shares, "{:.1%}")
    _row(table, "illegal mass", [c["illegal_mass"] for c in columns], "{:.2%}")
    return table


def _control(found: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="emotion asked for and estimated")
    table.add_column("")
    for column in found:
        table.add_column(f"guidance {column['guidance_scale']:g}", justify="right")
    for name, pattern in _CONTROL_ROWS.items():
        _row(table, _words(name), [column[name] for column in found], pattern)
    return table


def _measures(found: dict[str, Any]) -> Table:
    table = Table(
        title="the music: mean ± standard deviation",
        caption="in brackets: standard deviations from real music" if "real" in found else None,
    )
    table.add_column("")
    for name, column in found.items():
        table.add_column(f"{name} ({column['pieces']})", justify="right")
    for measure in MEASURES:
        cells = []
        for column in found.values():
            value = column["measures"][measure]
            cell = f"{_number(value['mean'])} ± {_number(value['deviation'])}"
            if value.get("difference") is not None:
                cell += f" ({value['difference']:+.1f})"
            cells.append(cell)
        table.add_row(_words(measure), *cells)
    return table


def _row(table: Table, name: str, values: Sequence[float | None], pattern: str) -> None:
    table.add_row(name, *(_number(value, pattern) for value in values))


def _number(value: float | None, pattern: str = "{:.2f}") -> str:
    return "-" if value is None else pattern.format(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
