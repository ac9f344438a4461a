"""Everything that the workflow measured, as one Markdown page with pictures beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kmidi_mlx import __version__, checkpoint
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.console import in_words
from kmidi_mlx.runs.memory import physical_bytes
from kmidi_mlx.workflow.commands import another, shown
from kmidi_mlx.workflow.config import WorkflowConfig
from kmidi_mlx.workflow.curves import draw_curves, read_losses, read_peak_gb
from kmidi_mlx.workflow.journal import Journal
from kmidi_mlx.workflow.steps import CLOUD, GENERATOR, Step

__all__ = ["REPORT", "write_report"]

REPORT = "report.md"
# a correlation of fewer is chance
_FEW_PIECES = 12
_PICTURES = "pictures"
_UNITS = {GENERATOR: "nats per event", CLOUD: "loss per cloud"}

Results = Sequence[Any]


def write_report(
    config: WorkflowConfig, steps: Sequence[Step], journal: Journal, out: Path
) -> None:
    """Write the page and its pictures.

    Args:
        config: of the workflow.
        steps: all of them.
        journal: what was done.
        out: folder of the workflow.
    """
    sections = [_head(config), _table_of_steps(config, steps, journal)]
    for step in steps:
        entry = journal[step.name]
        if entry.done and entry.results:
            text = _section(step, entry.results, out)
            sections.append(f"## {step.title}\n\n{text}\n\n```sh\n{_commands(step)}\n```")
    write_bytes_atomically(out / REPORT, ("\n\n".join(sections) + "\n").encode())


def _commands(step: Step) -> str:
    """What does a step once more, line by line; training goes beside the run that there is."""
    lines = []
    for number, command in enumerate(step.commands):
        folder = step.folders.get(number)
        lines.append(shown(command if folder is None else another(command, folder)))
    return "\n".join(lines)


def _head(config: WorkflowConfig) -> str:
    now = datetime.now(UTC).isoformat(timespec="minutes")
    commit = checkpoint.git_commit()
    version = f"kmidi {__version__}{f' ({commit[:10]})' if commit else ''}"
    return (
        "# What the workflow did\n\n"
        f"{now}, {version}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, {physical_bytes() / 1e9:.0f} GB; no step may take more than "
        f"{config.workflow.memory_gb:g} GB."
    )


def _table_of_steps(config: WorkflowConfig, steps: Sequence[Step], journal: Journal) -> str:
    rows = []
    for step in steps:
        entry = journal[step.name]
        if step.left_out:
            rows.append([step.name, f"left out: {step.left_out}", "", ""])
        elif not entry.done:
            rows.append([step.name, "cut off or failed" if entry.begun else "not done", "", ""])
        else:
            peak = f"{entry.peak_gb:.2f} GB"
            if entry.peak_gb > config.workflow.memory_gb:
                peak += " (**too much**)"
            rows.append([step.name, "done", in_words(entry.seconds), peak])
    seconds = sum(journal[step.name].seconds for step in steps if journal[step.name].done)
    return (
        "## Steps\n\n"
        + _table(["step", "", "took", "memory at most"], rows)
        + f"\n\n{in_words(seconds)} in all."
    )


def _section(step: Step, results: Results, out: Path) -> str:
    kind = step.name.partition("-")[0]
    model = GENERATOR if step.name.endswith(GENERATOR) else CLOUD
    write: dict[str, Callable[[], str]] = {
        "prepare": lambda: _prepared(results[-1]),
        "train": lambda: _trained(results[-1], model, out),
        "evaluate": lambda: (_music if model == GENERATOR else _clouds)(results[-1]),
        "finetune": lambda: _tuned(results[-1], out),
        "pieces": lambda: _pieces(step, results, out),
        "quantize": lambda: _quantized(results[-1]),
        "export": lambda: _exported(step, results, out),
        "bench": lambda: _played(step),
    }
    return write[kind]()


def _prepared(result: dict[str, Any]) -> str:
    rows = []
    for name, side in result["summary"]["splits"].items():
        things = [f"{count:,}" for key, count in side.items() if key not in ("songs", "hours")]
        rows.append([name, f"{side['songs']:,}", f"{side['hours']:.2f}", *things])
    sides = result["summary"]["splits"].values()
    counted = [key for key in next(iter(sides)) if key not in ("songs", "hours")] if sides else []
    rejected = result["summary"]["rejected"]
    licences = ", ".join(result["summary"]["licences"]) or "none stated"
    return _table(["side", "songs", "hours", *counted], rows) + (
        f"\n\n{rejected:,} files could not be used. Licences: {licences}."
    )


def _trained(result: dict[str, Any], model: str, out: Path) -> str:
    unit, metrics = _UNITS[model], out / model / checkpoint.METRICS
    drawn = draw_curves(read_losses(metrics), model, unit)
    # a run that goes on measures only its own part
    peak_gb = max(result["peak_memory_gb"], read_peak_gb(metrics))
    text = (
        f"{result['step']:,} steps in {in_words(result['seconds'])}; best at step "
        f"{result['best_step']:,} with {result['val_loss']:.4f} {unit} on held-out music. "
        f"{result['skipped_steps']} steps gave NaN and were skipped; the framework took "
        f"{peak_gb:.2f} GB at the most."
    )
    if not drawn:
        return text
    picture = out / _PICTURES / f"{model}.svg"
    picture.parent.mkdir(exist_ok=True)
    write_bytes_atomically(picture, drawn.encode())
    return f"{text}\n\n![losses of {model}]({_PICTURES}/{picture.name})"


def _music(result: dict[str, Any]) -> str:
    scores = result["likelihood"]["scores"]
    rows = [
        [
            name,
            f"{score['nats_per_event']:.4f} ± {score['standard_error']:.4f}",
            f"{score['nats_per_note']:.2f}",
            f"{100 * score['illegal_mass']:.1f} %",
        ]
        for name, score in scores.items()
    ]
    text = _table(["", "nats per event", "nats per note", "mass on what the rules forbid"], rows)
    text += (
        "\n\nNats tell how much the real next event surprises a model: lower is better, and 0.69 "
        "fewer make it twice as likely. Mass on what the rules forbid is probability that the "
        "rules of generating take away. Counted on the held-out events that the command "
        "says; during training on fewer, so that the two differ a little."
    )
    for control in result.get("control", []):
        hits, chance = control["quadrant_hits"], control["quadrant_chance"]
        text += (
            f"\n\n{control['pieces']} pieces were written: {control['violations']} against the "
            f"rules, {control['hanging_notes']} hanging notes; the label model hears what was "
            f"asked for with a correlation of {_number(control['valence_correlation'])} (valence) "
            f"and {_number(control['arousal_correlation'])} (arousal), the right quadrant in "
            f"{100 * hits:.0f} % (chance {100 * chance:.0f} %)."
        )
        if control["pieces"] < _FEW_PIECES:
            text += " So few pieces prove nothing about either."
    groups = result.get("measures") or {}
    names = list(next(iter(groups.values()))["measures"]) if groups else []
    if names:
        rows = [
            [
                name.replace("_", " "),
                *(_number(group["measures"][name]["mean"]) for group in groups.values()),
            ]
            for name in names
        ]
        text += "\n\n" + _table(["mean of", *groups], rows)
    return text


def _clouds(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{rung['errors']['chamfer']['mean']:.5f} "
            f"± {rung['errors']['chamfer']['standard_error']:.5f}",
            _number(rung["errors"]["color_mse"]),
            _number(rung["errors"]["movement"]),
            _number(rung["ms_per_frame"]),
        ]
        for name, rung in result["rungs"].items()
    ]
    head = ["", "Chamfer distance", "colour error", "movement kept", "ms a cloud"]
    return _table(head, rows) + (
        f"\n\n{2 * result['pairs']} clouds of {result['songs']} songs, all points of each "
        "(training draws some of them, so its figures are larger). Chamfer distance: mean squared "
        "way from each point to the nearest of the teacher's, and back; lower is better. Movement "
        "kept: 1 is as lively as the teacher."
    )


def _tuned(result: dict[str, Any], out: Path) -> str:
    memory = result["memory"]
    whose = "practice pieces" if result["synthetic"] else "your music"
    rows = [
        [f"{whose}, held out", *(f"{memory[when]['own']:.4f}" for when in ("before", "after"))],
    ]
    if memory["before"]["original"] is not None:
        kept = (f"{memory[when]['original']:.4f}" for when in ("before", "after"))
        rows.append(["music of the base, held out", *kept])
    return (
        _table([memory["unit"], "before", "after"], rows)
        + f"\n\n{result['step']} steps in {in_words(result['seconds'])}; the adapter has "
        f"{result['bytes'] / 1e6:.2g} MB: `{_within(result['weights'], out)}`. Fused: "
        f"`{_within(result['fused'], out)}`."
    )


def _pieces(step: Step, results: Results, out: Path) -> str:
    texts = []
    for result in results:
        if not isinstance(result, dict) or "notes" not in result:
            continue
        piece = Path(result["out"])
        style = ""
        if result["adapters"]:
            learnt = "of the practice pieces" if result["synthetic"] else "of your music"
            style = f" in the style {learnt}"
        text = f"[{piece.stem}]({_within(piece, out)}){style}: {result['notes']} notes"
        picture = piece.with_suffix(".png")
        if picture in step.outputs:
            text += f"\n\n![engine left, network right]({_within(picture, out)})"
        texts.append(text)
    return "\n\n".join(texts)


def _quantized(result: dict[str, Any]) -> str:
    rows = [
        [
            "size",
            f"{result['bytes_before'] / 1e6:.2f} MB",
            f"{result['bytes_after'] / 1e6:.2f} MB",
        ],
        *(
            [loss["unit"], f"{loss['before']:.5f}", f"{loss['after']:.5f}"]
            for loss in result["losses"]
        ),
        [
            f"ms, one {result['after']['unit']}, {result['device']}",
            *(_spread(result[when]) for when in ("before", "after")),
        ],
    ]
    return _table(["", "before", "after"], rows) + (
        "\n\nms: median and, in brackets, 10th to 90th percentile; other programs that are running "
        "make it slower and uneven."
    )


def _spread(pace: dict[str, Any]) -> str:
    text = f"{pace['milliseconds']:.1f}"
    if "slow_milliseconds" not in pace:
        return text  # measured by an earlier version
    return f"{text} ({pace['quick_milliseconds']:.1f}-{pace['slow_milliseconds']:.1f})"


def _exported(step: Step, results: Results, out: Path) -> str:
    rows = []
    for path, result in zip(step.outputs, results, strict=False):
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        holds = "yes" if isinstance(result, dict) and result.get("holds") else "see the log"
        rows.append([_within(path, out), f"{size / 1e6:.1f} MB", holds])
    return _table(["file", "size", "proved equal"], rows)


def _played(step: Step) -> str:
    lines = step.outputs[0].read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[-1])
    rows = [
        ["clouds a second", f"{row['fps']:.1f}"],
        ["ms a token, median and 99 %", f"{row['token_ms_p50']:.1f}, {row['token_ms_p99']:.1f}"],
        ["notes late, ms, 99 %", f"{row['lateness_ms_p99']:.1f}"],
        ["music missing when it was due", f"{row['underruns']}"],
        ["hanging notes", f"{row['hanging']}"],
        ["memory at the end", f"{row['memory_end_gb']:.2f} GB"],
    ]
    return _table(["", f"{row['seconds']:.0f} seconds"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _within(path: str | Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()
