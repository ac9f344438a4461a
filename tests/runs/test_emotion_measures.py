"""Scores of recognised emotion, against slow references and where the answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.audio_emotion import Recordings, read_recordings
from kmidi_mlx.runs.emotion_measures import (
    ClipEstimates,
    calibration_of,
    expected_calibration_error,
    fit_temperature,
    label_score,
    number_scores,
    per_recording,
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Sixty recordings of thirty songs; every third without label, every fifth without valence."""
    folder = tmp_path_factory.mktemp("measures")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(60):
        (folder / f"{number}.wav").write_bytes(bytes([number]))
        line = {"path": f"{number}.wav", "song": number // 2, "split": "val"}
        line["arousal"] = round(float(rng.uniform(-1, 1)), 3)
        if number % 5:
            line["valence"] = round(float(rng.uniform(-1, 1)), 3)
        if number % 3:
            line["label"] = ("happy", "sad", "calm")[int(rng.integers(3))]
        lines.append(line)
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_recordings(folder / "m.jsonl")


def clips_of(recordings: Recordings, sharpness: float = 1.0, seed: int = 0) -> ClipEstimates:
    """Two or three clips a recording; labels are drawn from the probabilities, then sharpened."""
    rng = np.random.default_rng((4, seed))
    recording = np.repeat(np.arange(60), rng.integers(2, 4, 60))
    numbers = recordings.numbers[recording] + rng.normal(0, 0.2, (len(recording), 3))
    truth = np.maximum(recordings.label[recording], 0)
    logits = rng.normal(0, 1, (len(recording), 3))
    logits[np.arange(len(truth)), truth] += 1.0
    frames = rng.integers(4, 50, len(recording))
    return ClipEstimates(numbers, sharpness * logits, recording, frames)


def test_a_recording_is_the_mean_of_its_clips_by_length(recordings: Recordings) -> None:
    clips = clips_of(recordings)
    whole = per_recording(clips)
    assert whole.recording.tolist() == list(range(60))
    for number in range(0, 60, 7):
        mine = clips.recording == number
        expected = np.average(clips.numbers[mine], axis=0, weights=clips.frames[mine])
        np.testing.assert_allclose(whole.numbers[number], expected)
        expected = np.average(clips.logits[mine], axis=0, weights=clips.frames[mine])
        np.testing.assert_allclose(whole.logits[number], expected)


def test_number_scores_are_those_of_the_textbook(recordings: Recordings) -> None:
    whole = per_recording(clips_of(recordings))
    scores = number_scores(whole, recordings, np.array([0.1, np.nan, 0.3]))
    # without valence and label there is neither it nor an intensity
    assert [score.count for score in scores.values()] == [56, 60, 56]
    known = (np.arange(60) % 5 > 0) | (np.arange(60) % 3 > 0)
    truth = recordings.numbers[known, 0].astype(np.float64)
    found = whole.numbers[known, 0]
    valence = scores["valence"]
    assert valence.r2 == pytest.approx(1 - np.mean((found - truth) ** 2) / truth.var())
    assert valence.r == pytest.approx(np.corrcoef(found, truth)[0, 1])
    assert valence.error == pytest.approx(np.abs(found - truth).mean())
    assert valence.mean_error == pytest.approx(np.abs(0.1 - truth).mean())
    assert scores["arousal"].mean_error is None


def test_the_mean_has_no_share_and_the_truth_all(recordings: Recordings) -> None:
    number = np.arange(60)
    count = np.ones(60, np.int64)
    empty = np.zeros((60, 0))
    arousal = recordings.numbers[:, 1].astype(np.float64)
    means = np.full((60, 3), arousal.mean())
    said = ClipEstimates(means, empty, number, count)
    assert number_scores(said, recordings, np.zeros(3))["arousal"].r2 == pytest.approx(0, abs=1e-6)
    assert number_scores(said, recordings, np.zeros(3))["arousal"].r is None
    true = ClipEstimates(recordings.numbers.astype(np.float64), empty, number, count)
    for score in number_scores(true, recordings, np.zeros(3)).values():
        assert score.r2 == pytest.approx(1)
        assert score.error == 0
    assert label_score(true, recordings, 0) is None


def test_label_scores_by_hand(recordings: Recordings) -> None:
    number = np.arange(60)
    logits = np.zeros((60, 3))
    logits[:, 0] = 1
    said = ClipEstimates(np.zeros((60, 3)), logits, number, np.ones(60, np.int64))
    score = label_score(said, recordings, 0)
    truth = recordings.label[recordings.label >= 0]
    share = (truth == 0).mean()
    assert score is not None
    assert score.count == 40
    assert score.accuracy == score.largest_share == pytest.approx(share)
    assert score.macro_f1 == pytest.approx(2 * share / (1 + share) / 3)


def slow_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for low in np.arange(15) / 15:
        inside = [
            (p.max(), p.argmax() == label)
            for p, label in zip(probabilities, labels, strict=True)
            if low <= p.max() < low + 1 / 15 or (low == 14 / 15 and p.max() == 1)
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(labels) * abs(right - confidence)
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.1, 20))
def test_the_calibration_error_is_that_of_the_slow_way(seed: int, n: int, sharp: float) -> None:
    rng = np.random.default_rng(seed)
    raw = np.exp(sharp * rng.normal(size=(n, 4)))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    labels = rng.integers(0, 4, n)
    found = expected_calibration_error(probabilities, labels)
    assert found == pytest.approx(slow_error(probabilities, labels), abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 8))
def test_the_temperature_undoes_a_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (4000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.15)


@pytest.mark.parametrize("sharpness", [8.0, 0.1])
def test_a_temperature_lowers_the_error_of_wrong_confidence(
    recordings: Recordings, sharpness: float
) -> None:
    found = calibration_of(clips_of(recordings, sharpness), recordings, None)
    assert found is not None
    assert found.after < 0.7 * found.before
    assert found.nats_after < found.nats_before
    assert (found.temperature > 1) == (sharpness > 1)
    assert "cross-fitted over 5 parts" in found.method


def test_songs_get_the_temperature_of_other_songs(recordings: Recordings) -> None:
    clips = clips_of(recordings, 3.0)
    labels = recordings.label[clips.recording]
    songs = recordings.song[clips.recording]
    # a fifth of the songs is far too sure: their own temperature would be another one
    clips.logits[np.isin(songs, np.unique(songs)[::5])] *= 10
    known = labels >= 0
    logits, labels, songs = clips.logits[known], labels[known], songs[known]
    scaled = np.zeros_like(logits)
    for part in range(5):
        mine = np.isin(songs, np.unique(songs)[part::5])
        scaled[mine] = logits[mine] / fit_temperature(logits[~mine], labels[~mine])
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    found = calibration_of(clips, recordings, None)
    assert found is not None
    assert found.after == pytest.approx(slow_error(shares, labels))
    direct = calibration_of(clips, recordings, 2.0)
    assert direct is not None
    assert direct.method == "temperature of the checkpoint, fitted to other songs"
    assert direct.temperature == 2.0
    assert direct.before == found.before
    assert direct.after != found.after


def test_one_song_alone_cannot_be_calibrated(recordings: Recordings) -> None:
    clips = clips_of(recordings)
    one = clips.recording == 1
    alone = ClipEstimates(*(getattr(clips, n)[one] for n in vars(clips)))
    assert calibration_of(alone, recordings, None) is None
    assert calibration_of(alone, recordings, 2.0) is not None
