"""What `bench.music` found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from kmidi_mlx.evaluation.long_runs import DRIFTS, FAULTS
from kmidi_mlx.evaluation.memorisation import WINDOW_SECONDS

__all__ = ["music_tables"]

_MOST_STREAMS = 6


def music_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table for each part of the result.

    Args:
        result: what the benchmark writes as a JSON line.
    """
    yield _likeness(result["likeness"])
    yield _distances(result["likeness"])
    if result["long_runs"]["streams"]:
        yield _long_runs(result["long_runs"])
    yield _memorisation(result["memorisation"])


def _likeness(found: Mapping[str, Any]) -> Table:
    names = ("real", *found["sets"])
    table = Table(
        title=f"{found['pieces']} pieces of {found['seconds']:g} s beside real ones: overlap, 0-1",
        caption=f"with one half of the real pieces, mean of {found['splits']} ways to halve them; "
        "least: of real with real; like real: overlap not below that",
    )
    table.add_column("", no_wrap=True)
    for name in ("least", *names):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("like real")
    for feature, row in found["features"].items():
        halves = row["halves"]
        table.add_row(
            _words(feature),
            f"{halves['real']['lowest_overlap']:.2f}",
            *(f"{halves[name]['overlap']:.2f}" for name in names),
            "yes" if row["like_real"] else "no",
        )
    return table


def _distances(found: Mapping[str, Any]) -> Table:
    table = Table(
        title="mean distance of two pieces, and divergence in nats",
        caption="distances of all pieces, divergence from one half of the real pieces",
    )
    table.add_column("", no_wrap=True)
    for name in ("both real", "both written", "one of each", "real nats", "written nats"):
        table.add_column(name, justify="right")
    for feature, row in found["features"].items():
        table.add_row(
            _words(feature),
            *(f"{row['all'][key]:.3g}" for key in ("within", "within_other", "between")),
            *(f"{row['halves'][name]['divergence']:.3f}" for name in ("real", "written")),
        )
    return table


def _long_runs(found: Mapping[str, Any]) -> Table:
    limits, real = found["limits"], found["real"]
    # those with the most faults first, as many as a screen has room for
    worst = sorted(found["streams"], key=lambda one: -sum(map(bool, one["faults"].values())))
    streams = [one for one in found["streams"] if one in worst[:_MOST_STREAMS]]
    hidden = len(found["streams"]) - len(streams)
    table = Table(
        title="long runs" + (f" ({hidden} with the least faults are not shown)" if hidden else ""),
        caption=f"limit: 99th percentile of {limits['pieces']} real pieces, of the least notes the "
        f"1st; {found['real_faulty']:.0%} of them break one. Loops and repeats: the worst stretch "
        f"of about {limits['seconds']:.0f} s. Drift: last minute less first",
    )
    table.add_column("", no_wrap=True)
    for stream in streams:
        table.add_column(stream["name"], justify="right")
    table.add_column("real, median", justify="right")
    table.add_column("limit", justify="right")
    _row(table, "minutes", "{:.1f}", [stream["seconds"] / 60 for stream in streams])
    minutes = [stream["notes_by_minute"] for stream in streams]
    _row(table, "notes a minute", "{:.0f}", [sum(notes) / len(notes) for notes in minutes])
    figures: dict[str, tuple[str, str, list[float]]] = {
        "least_notes": ("least notes in a minute", "{:.0f}", [min(notes) for notes in minutes]),
        "longest_rest": ("longest rest, s", "{:.1f}", [one["longest_rest"] for one in streams]),
        "longest_loop": ("loop, s", "{:.1f}", [one["worst"]["loop_seconds"] for one in streams]),
        "longest_repeat": (
            "longest repeat, s",
            "{:.1f}",
            [one["worst"]["longest_seconds"] for one in streams],
        ),
        "repeated_share": (
            "windows repeated",
            "{:.0%}",
            [one["worst"]["share"] for one in streams],
        ),
    }
    for key, (label, pattern, values) in figures.items():
        _row(table, label, pattern, [*values, real[key], limits[key]])
    for name in DRIFTS:
        label = "drift: density, octaves" if name == DRIFTS[0] else f"drift: {_words(name)}"
        drifts = [stream["drift"][name] for stream in streams]
        cells = [f"{value:+.2f}" for value in drifts]
        table.add_row(label, *cells, f"±{real['drift'][name]:.2f}", f"±{limits['drift'][name]:.2f}")
    for fault in FAULTS:
        table.add_row(fault, *("; ".join(stream["faults"][fault]) or "no" for stream in streams))
    return table


def _memorisation(found: Mapping[str, Any]) -> Table:
    sets = found["sets"]
    table = Table(
        title=f"longest runs shared with {found['train_pieces']:,} training pieces, "
        f"{found['train_events']:,} events",
        caption=f"in pieces of {found['seconds']:g} s; notes: in any key, at any tempo; beyond: "
        "pieces with longer ones than 99% of the held-out ones; copied: training pieces, also 2 "
        "semitones higher, and 3% slower too: what the search has to find",
    )
    table.add_column("", no_wrap=True)
    for name in sets:
        table.add_column(_words(name), justify="right")
    rows = list(sets.values())
    _row(table, "pieces", "{:d}", [row["pieces"] for row in rows])
    for kind in ("notes", "events"):
        for place, name in enumerate(("median", "90%", "99%", "most")):
            _row(table, f"{kind}: {name}", "{:.0f}", [row[kind][place] for row in rows])
        _row(table, f"{kind}: beyond", "{:d}", [row[f"beyond_{kind}"] for row in rows])
    _row(table, "seconds: most", "{:.1f}", [row["note_seconds"] for row in rows])
    _row(table, f"windows of {WINDOW_SECONDS:g} s", "{:d}", [row["windows"] for row in rows])
    _row(table, "found whole", "{:.1%}", [row["found_share"] for row in rows])
    table.add_row("copies", *("yes" if row["copies"] else "no" for row in rows))
    return table


def _row(table: Table, label: str, pattern: str, values: Sequence[float | None]) -> None:
    cells = ["-" if value is None else pattern.format(value) for value in values]
    table.add_row(label, *cells)


def _words(name: str) -> str:
    return name.replace("_", " ")
