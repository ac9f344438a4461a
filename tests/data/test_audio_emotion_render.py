"""Labelled MIDI becomes recordings: the same bytes every time, nothing made twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kmidi_mlx.data.audio_emotion import read_recordings
from kmidi_mlx.data.audio_emotion_recording import draw_change, quadrant_label
from kmidi_mlx.data.audio_emotion_render import render_audio_emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.mood import (
    MOOD_FEATURES,
    cell_statistics,
    mood,
    mood_features,
    window_sums,
)
from kmidi_mlx.music.notes import Notes


def piece(seed: int, seconds: float = 1.5) -> Notes:
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.uniform(0, seconds - 0.3, 8))
    return Notes.build(rng.integers(50, 80, 8), rng.integers(40, 90, 8), onset, onset + 0.3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A manifest of five lines: numbers, a label, both, nothing, a file that is no MIDI."""
    folder = tmp_path / "midi"
    folder.mkdir()
    for number in range(4):
        write_midi(piece(number), folder / f"piece {number}.mid")
    (folder / "broken.mid").write_bytes(b"no music")
    lines: list[dict[str, Any]] = [
        {"path": "piece 0.mid", "valence": -0.2, "arousal": 0.4, "split": "train", "game": "X"},
        {"path": "piece 1.mid", "label": "tender", "split": "val", "song": "s", "dataset": "d"},
        {"path": "piece 2.mid", "label": "sad", "valence": 0.5, "arousal": -0.5, "split": "test"},
        {"path": "piece 3.mid", "split": "train"},
        {"path": "broken.mid", "label": "sad", "split": "train"},
    ]
    lines[0] |= {"key": "C:maj", "n_notes": 8, "chords": [[0, 1, "C"]], "duration_s": 99.0}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def test_the_manifest_keeps_what_is_true_of_the_recording(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = render_audio_emotion([source], out, workers=1)
    assert report.complete
    assert (report.sources, report.rendered, report.reused, report.rejected) == (5, 3, 0, 2)
    assert report.splits == {"train": (1, 1), "val": (1, 1), "test": (1, 1)}
    first, second, third = lines_of(out / "manifest.jsonl")
    assert (first["label"], second["label"], third["label"]) == ("angry", "tender", "sad")
    assert (first["valence"], first["arousal"], first["game"]) == (-0.2, 0.4, "X")
    assert first["key"] == "C:maj"
    assert not {"chords", "n_notes"} & first.keys()
    assert (second["song"], second["split"], second["variant"]) == ("d/s", "val", 0)
    assert Path(first["midi"]) == source.parent / "piece 0.mid"
    cells = window_sums(cell_statistics(piece(0), 1.0), 8, 1)
    np.testing.assert_allclose(first["cues"], mood_features(cells), atol=2e-2)
    assert (first["cue_hop_s"], first["cue_window_s"]) == (1.0, 8.0)
    for row in (first, second, third):
        info = soundfile.info(out / row["path"])
        assert (info.format, info.samplerate, info.channels) == ("FLAC", 16_000, 1)
        assert info.duration == pytest.approx(row["duration_s"], abs=1e-3)
        sound, _ = soundfile.read(out / row["path"])
        assert np.abs(sound).max() > 0.01
    reasons = {Path(row["path"]).name: row["reason"] for row in lines_of(out / "rejected.jsonl")}
    assert "no emotion is given" in reasons["piece 3.mid"]
    assert "broken.mid" in reasons["broken.mid"]


def test_music_without_labels_is_on_the_train_side_or_left_out(
    source: Path, tmp_path: Path
) -> None:
    with source.open("a") as file:
        for number, line in enumerate(
            [
                {"path": "more 0.mid", "split": "test", "song": "u", "arousal": 0.5},
                # another version of a song that is held out
                {"path": "more 1.mid", "split": "val", "song": "s", "dataset": "d"},
            ]
        ):
            write_midi(piece(10 + number), source.parent / f"more {number}.mid")
            file.write(json.dumps(line) + "\n")
    out = tmp_path / "out"
    report = render_audio_emotion([source], out, workers=1, variants=1, with_unlabelled=True)
    rows = lines_of(out / "manifest.jsonl")
    bare = [row for row in rows if Path(row["midi"]).name in ("piece 3.mid", "more 0.mid")]
    assert (report.rendered, report.unlabelled, len(bare)) == (8, 2, 2)
    for row in bare:
        assert (row["split"], row["variant"]) == ("train", 0)
        assert not {"label", "valence", "arousal", "intensity"} & row.keys()
        assert len(row["cues"][0]) == len(MOOD_FEATURES)
    reasons = {Path(row["path"]).name: row["reason"] for row in lines_of(out / "rejected.jsonl")}
    assert set(reasons) == {"broken.mid", "more 1.mid"}
    assert "the song 'd/s' is held out" in reasons["more 1.mid"]
    recordings = read_recordings(out / "manifest.jsonl")
    assert recordings.unlabelled.sum() == 2


def test_a_second_run_makes_the_same_bytes_and_none_anew(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"variants": 1, "seed": 3}
    one, two = tmp_path / "one", tmp_path / "two"
    first = render_audio_emotion([source], one, workers=1, **options)
    made = contents(one)
    again = render_audio_emotion([source], one, workers=1, **options)
    assert (first.rendered, again.rendered, again.reused) == (6, 0, 6)
    assert contents(one) == made
    render_audio_emotion([source], two, workers=2, **options)
    assert contents(two) == made


def test_variants_sound_different_and_lose_the_key(source: Path, tmp_path: Path) -> None:
    render_audio_emotion([source], tmp_path / "out", workers=1, variants=2)
    rows = lines_of(tmp_path / "out" / "manifest.jsonl")
    assert [row["variant"] for row in rows] == [0, 1, 2] * 3
    assert [("key" in row) for row in rows[:3]] == [True, False, False]
    pitch = np.array([row["cues"][0][MOOD_FEATURES.index("mean_pitch")] for row in rows])
    moved = (pitch.reshape(3, 3)[:, 1:] - pitch.reshape(3, 3)[:, :1]).ravel()
    assert len(set(np.round(moved, 2))) > 3
    assert (moved < 0).any()
    assert (moved > 0).any()
    sounds = [soundfile.read(tmp_path / "out" / row["path"])[0] for row in rows[:3]]
    lengths = [len(sound) for sound in sounds]
    assert len({sound.tobytes() for sound in sounds}) == 3
    assert all(0.94 < length / lengths[0] < 1.06 for length in lengths)


def test_other_options_replace_the_recordings_of_the_last_run(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render_audio_emotion([source], out, workers=1)
    before = {row["path"] for row in lines_of(out / "manifest.jsonl")}
    (out / "audio" / "mine.flac").write_bytes(b"kept")
    report = render_audio_emotion([source], out, workers=1, sample_rate=8_000)
    after = {row["path"] for row in lines_of(out / "manifest.jsonl")}
    assert report.rendered == 3
    assert not before & after
    assert {f"audio/{file.name}" for file in (out / "audio").iterdir()} == {
        *after,
        "audio/mine.flac",
    }


def test_only_the_middle_of_a_long_piece_is_rendered(tmp_path: Path) -> None:
    # one loud note in the middle of six seconds, very soft ones around it
    notes = Notes.build([60, 72, 60], [1, 120, 1], [0.0, 2.8, 5.5], [0.5, 3.2, 6.0])
    write_midi(notes, tmp_path / "a.mid")
    (tmp_path / "m.jsonl").write_text('{"path": "a.mid", "label": "sad", "split": "train"}\n')
    render_audio_emotion([tmp_path / "m.jsonl"], tmp_path / "out", workers=1, seconds=2.0)
    row = lines_of(tmp_path / "out" / "manifest.jsonl")[0]
    sound, rate = soundfile.read(tmp_path / "out" / row["path"])
    assert len(sound) == 2 * rate
    assert 0.75 < np.abs(sound).argmax() / rate < 1.3


def test_cues_follow_the_piece(tmp_path: Path) -> None:
    # low for ten seconds, then high for ten
    onset = np.arange(40) * 0.5
    notes = Notes.build(np.where(onset < 10, 40, 80), np.full(40, 70), onset, onset + 0.4)
    write_midi(notes, tmp_path / "a.mid")
    (tmp_path / "m.jsonl").write_text('{"path": "a.mid", "label": "sad", "split": "train"}\n')
    render_audio_emotion([tmp_path / "m.jsonl"], tmp_path / "out", workers=1)
    track = read_recordings(tmp_path / "out" / "manifest.jsonl").cues[0]
    assert track is not None
    pitch = track.values[:, MOOD_FEATURES.index("mean_pitch")]
    assert len(pitch) == 13
    np.testing.assert_allclose(pitch[[0, 2, 6, 10, 12]], [40, 40, 60, 80, 80], atol=1e-3)
    assert track.during(10.0, 18.0)[MOOD_FEATURES.index("mean_pitch")] == pytest.approx(80)


def test_a_stopped_run_goes_on(source: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", iter((False, True, True))
    first = render_audio_emotion([source], out, workers=1, stop=lambda: next(asked))
    assert not first.complete
    assert not (out / "manifest.jsonl").exists()
    second = render_audio_emotion([source], out, workers=1)
    assert second.complete
    assert first.rendered > 0
    assert first.rendered + second.rendered == 3


def test_practice_pieces_need_no_source(tmp_path: Path) -> None:
    report = render_audio_emotion([], tmp_path, workers=1, synthetic=3, val_share=0.4, seconds=1.0)
    rows = lines_of(tmp_path / "manifest.jsonl")
    assert (report.composed, report.rendered) == (3, 3)
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(row["label"] == quadrant_label(row["valence"], row["arousal"]) for row in rows)


def test_what_would_be_overwritten_is_not(source: Path, tmp_path: Path) -> None:
    for out in (source.parent, tmp_path):
        with pytest.raises(KmidiError, match="is or holds the source"):
            render_audio_emotion([source], out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.jsonl").write_text('{"path": "a.mid"}\n')
    with pytest.raises(KmidiError, match="would be replaced"):
        render_audio_emotion([source], other)
    assert contents(other) == {"manifest.jsonl": b'{"path": "a.mid"}\n'}


def test_where_nothing_can_be_used_the_first_reason_is_named(tmp_path: Path) -> None:
    write_midi(piece(0), tmp_path / "a.mid")
    with pytest.raises(KmidiError, match=r"none of the 1 files can be used; .*no emotion is given"):
        render_audio_emotion([tmp_path / "a.mid"], tmp_path / "out", workers=1)
    with pytest.raises(KmidiError, match="nothing to prepare"):
        render_audio_emotion([], tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [("sample_rate", 4000), ("seconds", 0.0), ("variants", -1), ("workers", 0), ("seed", -1)],
)
def test_options_out_of_range_are_named(tmp_path: Path, option: str, value: float) -> None:
    with pytest.raises(KmidiError, match=f"--{option.replace('_', '-')} "):
        render_audio_emotion([], tmp_path, synthetic=1, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("point", "label"),
    [((0.5, 0.5), "happy"), ((-0.5, 0.5), "angry"), ((-0.5, -0.5), "sad"), ((0, -0.1), "calm")],
)
def test_the_label_is_that_of_the_quadrant(point: tuple[float, float], label: str) -> None:
    assert quadrant_label(*point) == label


def test_the_notes_tell_the_emotion_of_music_without_labels(source: Path, tmp_path: Path) -> None:
    """What is labelled keeps its label; the numbers are the mood model's of what is played."""
    render_audio_emotion([source], tmp_path / "out", variants=4, label_from_notes=True, workers=1)
    lines = lines_of(tmp_path / "out" / "manifest.jsonl")
    estimated = [line for line in lines if line.get("emotion_by") == "mood"]
    assert {Path(line["midi"]).name for line in estimated} == {"piece 3.mid"}
    assert [line["variant"] for line in estimated] == [0, 1, 2, 3, 4]
    assert {line["label"] for line in lines if line["midi"].endswith("piece 1.mid")} == {"tender"}
    valence, arousal = mood(piece(3))
    assert (estimated[0]["valence"], estimated[0]["arousal"]) == pytest.approx(
        (valence, arousal), abs=2e-3
    )
    assert len({(line["valence"], line["arousal"]) for line in estimated}) == 5
    for line in estimated:
        assert line["label"] == quadrant_label(line["valence"], line["arousal"])
    changes = [draw_change("12ab", 0, variant, wide=True) for variant in range(1, 60)]
    assert {change.parallel for change in changes} == {False, True}
    assert max(change.stretch for change in changes) > 1.4
    assert min(change.stretch for change in changes) < 0.75


def test_music_is_labelled_from_its_notes_or_not_at_all(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="give one of the two"):
        render_audio_emotion(
            [source], tmp_path / "out", label_from_notes=True, with_unlabelled=True
        )
