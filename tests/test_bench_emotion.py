"""The folds of the emotion benchmark keep franchises together and what is held out apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import emotion
from kmidi_mlx.data.audio_emotion import Recordings, read_recordings
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.emotion_measures import number_scores, per_recording


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    """Twelve pieces of four franchises, each with one variant."""
    lines = []
    for number in range(24):
        piece, variant = divmod(number, 2)
        (tmp_path / f"{number}.wav").write_bytes(bytes([number]))
        lines.append(
            {
                "path": f"{number}.wav",
                "song": piece,
                "franchise": "abbcccdddddd"[piece] if piece else "e",
                "variant": variant,
                "split": "train",
                "valence": piece / 12,
                "arousal": -piece / 24,
            }
        )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_recordings(tmp_path / "m.jsonl")


def test_what_shares_a_franchise_shares_a_fold(recordings: Recordings) -> None:
    names = np.array([row.values["franchise"] for row in recordings.rows])
    for count in (0, 2, 3, 99):
        fold = emotion.folds_of(recordings, "franchise", count)
        assert len(np.unique(fold)) == min(count or 4, 4)
        for name in np.unique(names):
            assert len(np.unique(fold[names == name])) == 1
    # the largest against all others
    assert np.bincount(emotion.folds_of(recordings, "franchise", 2)).tolist() == [12, 12]
    with pytest.raises(KmidiError, match="line 1: the key 'game' is missing"):
        emotion.folds_of(recordings, "game", 2)


def test_only_music_as_written_is_held_out_and_its_variants_are_on_no_side(
    recordings: Recordings,
) -> None:
    fold = emotion.folds_of(recordings, "franchise", 3)
    variant = np.array([row.values["variant"] for row in recordings.rows])
    heard = np.zeros(24, np.int64)
    for held_out in range(3):
        side = recordings.with_split(emotion.sides(recordings, fold, held_out))
        val, train = side.on_side("val"), side.on_side("train")
        assert (variant[val] == 0).all()
        assert not set(recordings.song[val]) & set(recordings.song[train])
        assert sorted(train) == np.flatnonzero(fold != held_out).tolist()
        heard[val] += 1
    np.testing.assert_array_equal(heard, variant == 0)


def test_recordings_without_labels_are_in_no_fold_and_never_held_out(
    recordings: Recordings, tmp_path: Path
) -> None:
    (tmp_path / "u.wav").write_bytes(b"u")
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write(json.dumps({"path": "u.wav", "cues": [1.0], "franchise": "c"}) + "\n")
        file.write(json.dumps({"path": "u.wav", "cues": [1.0]}) + "\n")
    more = read_recordings(tmp_path / "m.jsonl")
    fold = emotion.folds_of(more, "franchise", 3)
    np.testing.assert_array_equal(fold[:24], emotion.folds_of(recordings, "franchise", 3))
    assert fold[24:].tolist() == [-1, -1]
    for held_out in range(3):
        side = more.with_split(emotion.sides(more, fold, held_out))
        assert {24, 25} <= set(side.on_side("train").tolist())
        assert not {24, 25} & set(side.on_side("val").tolist())
    found = emotion.means(more, fold)
    expected = emotion.means(recordings, fold[:24])
    np.testing.assert_array_equal(found.recording, expected.recording)
    np.testing.assert_allclose(found.numbers, expected.numbers)


def test_the_mean_of_the_others_explains_nothing(recordings: Recordings) -> None:
    fold = emotion.folds_of(recordings, "franchise", 3)
    found = per_recording(emotion.means(recordings, fold))
    scores = number_scores(found, recordings, np.zeros(3))
    assert scores["valence"].count == 12
    assert scores["valence"].r2 is not None
    assert scores["valence"].r2 < 0


def test_ridge_finds_a_line(recordings: Recordings) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = x @ rng.normal(size=(3, 2)) + 1.5
    np.testing.assert_allclose(emotion._ridge(x[:30], y[:30], x[30:], 1e-6), y[30:], atol=1e-4)
    flat = emotion._ridge(x[:30], y[:30], x[30:], 1e9)
    np.testing.assert_allclose(flat, np.broadcast_to(y[:30].mean(axis=0), flat.shape), atol=1e-4)
