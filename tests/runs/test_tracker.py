from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.tracker import JsonLinesTracker


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Let no file of this process grow past `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines(path: Path) -> list[dict[str, object]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_one_json_object_per_report(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLinesTracker(path)
    assert lines(path) == []
    tracker.log(1, {"loss": 2.5, "skipped_steps": 0})
    assert lines(path) == [{"step": 1, "loss": 2.5, "skipped_steps": 0}]  # on the disk at once
    tracker.log(2, {"val_loss": 2.25})
    assert lines(path)[1:] == [{"step": 2, "val_loss": 2.25}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLinesTracker(path).log(3, {"loss": value, "grad_norm": 1.0})
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    assert lines(path) == [{"step": 3, "loss": None, "grad_norm": 1.0}]


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonLinesTracker(path)
    assert lines(path) == []


def test_a_resumed_run_drops_what_came_later_and_what_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = ['{"step": 5, "loss": 3.0}', '{"step": 10, "loss": null}', '{"step": 10, "val_loss": 2}']
    broken = ["", "[1, 2]", '{"loss": 1}', '{"step": "7"}', '{"step": null}', "7", "null", "\0" * 9]
    later = ['{"step": 11, "loss": 1.0}', '{"step": 400, "loss": 1.0}', '{"step": 12, "lo']
    path.write_bytes(
        "\n".join([kept[0], *broken, *kept[1:], *later]).encode() + b"\n\xff\xfe\xc3\n"
    )
    tracker = JsonLinesTracker(path, resume_step=10)
    assert path.read_text().splitlines() == kept
    tracker.log(11, {"loss": 0.5})
    assert path.read_text().splitlines() == [*kept, '{"step": 11, "loss": 0.5}']


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLinesTracker(path, resume_step=10).log(11, {"loss": 1.0})
    assert lines(path) == [{"step": 11, "loss": 1.0}]


def test_a_last_line_that_was_cut_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    JsonLinesTracker(path, resume_step=2).log(3, {"loss": 1.0})
    assert lines(path) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 1.0}]


def test_a_full_disk_raises_and_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLinesTracker(path)
    tracker.log(1, {"loss": 1.0})
    with no_room_beyond(path.stat().st_size + 10):
        for step in (2, 3):
            with pytest.raises(OSError, match=r"No space|too large"):
                tracker.log(step, {"loss": 1.0})
            assert [line["step"] for line in lines(path)] == [1]
    tracker.log(4, {"loss": 1.0})
    assert [line["step"] for line in lines(path)] == [1, 4]


def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"metrics\.jsonl"):
        JsonLinesTracker(tmp_path / "missing" / "metrics.jsonl")
