"""The benchmark of steering writes as `kmidi generate` does, goes on where it was, and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import emotion_control
from bench.emotion_control import Request, Work, flat
from kmidi_mlx.command import run
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.choir import write_pieces
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.models.loading import load_generator

ORIGIN = {"weights": "a", "sampling": {"top_k": 40}}
HAPPY, SAD = Emotion.of(0.9, 0.9), Emotion.of(-0.9, -0.9)


def bench(tiny_run: Path, practice_data: Path, folder: Path, *more: str) -> list[dict[str, Any]]:
    out = folder / "out.jsonl"
    emotion_control.main(
        [
            *("--checkpoint", str(tiny_run), "--data", str(practice_data), "--minutes", "0.8"),
            *("--seconds", "12", "--seed", "3", "--json", str(out), *more),
        ]
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    machine = ("date", "load", "commit")
    return [{k: v for k, v in row.items() if k not in machine} for row in rows]


def test_end_to_end_and_on_from_where_it_was_killed(
    tiny_run: Path,
    practice_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work" / "pieces.jsonl"
    scales = ("--guidance-scale", "1", "2", "--work", str(work), "--changes", "1")
    steering, guided, real = rows = bench(tiny_run, practice_data, tmp_path, *scales)
    assert [row["section"] for row in rows] == ["steering", "steering", "real"]
    assert (steering["guidance_scale"], guided["guidance_scale"]) == (1.0, 2.0)
    for row in (steering, guided):
        assert (row["grid"], row["minutes"], row["pieces"]) == ([2, 2], 0.8, 4)
        assert -1 <= row["arousal_r_low"] <= row["arousal_r_value"] <= row["arousal_r_high"] <= 1
        assert row["quadrant_hits_value"] in (0, 0.25, 0.5, 0.75, 1)
        assert row["measures_note_rate_arousal_slope_value"] is not None
        # five measures, two axes, three directions
        assert len(row["changes"]) == 30
        assert {change["streams"] for change in row["changes"]} == {4, 8}
    assert steering["valence_r_value"] != guided["valence_r_value"]
    assert real["pieces"] > 3
    sources = [value for name, value in real.items() if name.startswith("label_sources_")]
    assert real["pieces"] <= sum(sources)
    printed = capsys.readouterr().out
    for text in ("guidance 2", "quadrant hit", "a change in the middle", "mean velocity"):
        assert text in printed

    lines = work.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * (4 + 12)
    # killed while it wrote the last but two
    work.write_bytes(b"".join(lines[:-3]) + lines[-3][:40])
    wrote: list[Any] = []

    def counted(model: Any, sampling: Any, wanted: Any, **other: Any) -> Any:
        wrote.extend(wanted)
        return write_pieces(model, sampling, wanted, **other)

    monkeypatch.setattr(emotion_control, "write_pieces", counted)
    assert bench(tiny_run, practice_data, tmp_path, *scales) == rows
    assert len(wrote) == 3
    # those written together end in another order
    assert sorted(work.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_it_writes_as_kmidi_generate_does(tiny_run: Path) -> None:
    loaded = load_generator(tiny_run)
    sampling = loaded.config.sampling
    for then in (None, SAD):
        changes = [(2.0, then)] if then else []
        (found,) = write_pieces(loaded.model, sampling, [Request(4, 7, HAPPY, then).piece()])
        expected = generate(loaded.model, sampling, 4.0, seed=7, emotion=HAPPY, changes=changes)
        np.testing.assert_array_equal(found, expected)


def test_requests_that_differ_have_keys_that_differ() -> None:
    requests = [
        Request(30, 0, HAPPY),
        Request(30, 0, SAD),
        Request(30, 1, HAPPY),
        Request(20, 0, HAPPY),
        Request(30, 0, HAPPY, SAD),
        Request(30, 0, HAPPY, HAPPY),
    ]
    keys = {request.key(scale) for request in requests for scale in (1.0, 2.0)}
    assert len(keys) == 12


def test_work_that_is_not_this_bench_s_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    events = np.array([380, 60, 300, 188], np.uint16)
    Work(path, ORIGIN).add("one", events)
    again = Work(path, ORIGIN)
    assert "one" in again
    assert "two" not in again
    assert again["one"].pitch.tolist() == [60]
    with pytest.raises(KmidiError, match="another checkpoint or sampling"):
        Work(path, {**ORIGIN, "weights": "b"})
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(KmidiError, match="line 3: this is no piece"):
        Work(path, ORIGIN)
    path.write_text("some text\n")
    with pytest.raises(KmidiError, match="line 1"):
        Work(path, ORIGIN)
    Work(None, ORIGIN).add("one", events)


def test_a_line_that_was_cut_off_is_dropped_even_if_it_is_the_first(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text('{"weights": "a", "samp')
    Work(path, ORIGIN).add("one", np.array([380, 60, 300, 188], np.uint16))
    assert "one" in Work(path, ORIGIN)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--minutes", "1"], "--minutes 1: give enough for 4 pieces of 30 s"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--seconds", "13"], "--seconds 13: give an even number from 12 on"),
        (["--seconds", "10"], "--seconds 10"),
        (["--changes", "-1"], "--changes -1: give 0 or more"),
        (["--seed", "-1"], "--seed -1"),
        (["--guidance-scale", "99"], "--guidance-scale: "),
    ],
)
def test_wrong_flags_get_a_sentence(
    tiny_run: Path,
    practice_data: Path,
    flags: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = ["--checkpoint", str(tiny_run), "--data", str(practice_data)]
    assert run(emotion_control.main, [*paths, *flags]) == 2
    assert complaint in capsys.readouterr().err


def test_names_of_nested_values_are_joined() -> None:
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b_c": 2, "b_d_e": [3]}
