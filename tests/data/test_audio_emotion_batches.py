"""Batches of clips: a pure function of the step; fixed sides cover everything once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx.config import (
    AudioEmotionDataConfig,
    EmotionRecognizerConfig,
    EmotionRecognizerModelConfig,
    TrainingConfig,
)
from kmidi_mlx.data.audio_emotion import Recordings, Spectrogram, read_recordings
from kmidi_mlx.data.audio_emotion_batches import AudioEmotionBatches, Clips
from kmidi_mlx.data.cue_tracks import CueTrack
from kmidi_mlx.data.prefetch import Prefetcher
from kmidi_mlx.errors import KmidiError

# 10 frames a second: clips of 20 frames
CONFIG = EmotionRecognizerConfig(
    model=EmotionRecognizerModelConfig(n_mels=8, patch_frames=4),
    data=AudioEmotionDataConfig(
        sample_rate=8_000, n_fft=1024, hop_length=800, clip_seconds=2.0, dropout=0.25
    ),
    training=TrainingConfig(batch_size=4, seed=5),
)
# song, side, frames
PIECES = ((0, "train", 90), (0, "train", 100), (1, "train", 25), (2, "val", 67), (3, "val", 2))


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    lines = []
    for number, (song, split, _) in enumerate(PIECES):
        (tmp_path / f"{number}.wav").write_bytes(bytes([number]))
        lines.append({"path": f"{number}.wav", "song": song, "split": split, "arousal": 0.5})
        if number % 2:
            lines[-1] |= {"label": "sad", "valence": 0.25 * number, "cues": [number, -1.0]}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_recordings(tmp_path / "m.jsonl")


def sound_of(number: int, variant: int = 0) -> Spectrogram:
    """Frames that say which they are: recording, place, variant."""
    frames = PIECES[number][2]
    mel = np.zeros((frames, 8), np.float16)
    mel[:, 0], mel[:, 1], mel[:, 2] = 0.1 * number + 0.1, np.arange(frames) / 200, 0.1 + variant / 8
    return mel


def batches_of(
    recordings: Recordings,
    split: str,
    augment: bool = False,
    config: EmotionRecognizerConfig = CONFIG,
) -> AudioEmotionBatches:
    side = recordings.on_side(split).tolist()
    sounds = [[sound_of(number, variant) for variant in range(3)] for number in side]
    return AudioEmotionBatches(recordings, split, sounds, config, 6, augment)


def equal(one: Clips, two: Clips) -> bool:
    return all(np.array_equal(value, vars(two)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_depends_on_seed_and_step_alone(recordings: Recordings, augment: bool) -> None:
    one = batches_of(recordings, "train", augment)
    two = batches_of(recordings, "train", augment)
    later = [two.batch(step) for step in (7, 3, 0)]
    for step, batch in zip((7, 3, 0), later, strict=True):
        assert equal(one.batch(step), batch)
    assert not equal(one.batch(1), one.batch(2))
    with Prefetcher(one.batch, 3, 2) as stream:
        assert equal(next(stream), later[1])
    other = replace(CONFIG, training=replace(CONFIG.training, seed=6))
    assert not equal(batches_of(recordings, "train", augment, other).batch(3), later[1])


def test_fixed_sides_hear_every_frame_once(recordings: Recordings) -> None:
    val = batches_of(recordings, "val")
    heard: dict[int, list[float]] = {}
    for step in range(val.steps_per_epoch()):
        batch = val.batch(step)
        assert (batch.keep == 1).all()
        for row, number in enumerate(batch.recording.tolist()):
            if number < 0:
                assert not batch.mel[row].any()
                assert not batch.number_weights[row].any()
                assert batch.label_weights[row] == 0
                continue
            frames = min(int(batch.frames[row]), PIECES[number][2])
            heard.setdefault(number, []).extend(batch.mel[row, :frames, 1].tolist())
            assert not batch.mel[row, frames:].any()
            assert batch.frames[row] >= CONFIG.model.patch_frames
    assert set(heard) == {3, 4}
    for number, places in heard.items():
        np.testing.assert_allclose(places, np.arange(PIECES[number][2]) / 200, atol=1e-3)
    assert equal(val.batch(0), val.batch(val.steps_per_epoch()))


def test_an_epoch_has_the_clips_of_the_longest_recording_of_each_song(
    recordings: Recordings,
) -> None:
    train = batches_of(recordings, "train")
    assert train.clips_per_epoch == 5 + 2
    numbers = np.concatenate([train.batch(step).recording for step in range(7 * 20)])
    songs = recordings.song[numbers]
    # 7 clips an epoch, 4 in a batch: seven batches are four epochs
    counts = np.bincount(songs[: 28 * 5])
    assert counts.tolist() == [5 * 20, 2 * 20]
    takes = np.bincount(numbers)
    assert takes[0] == pytest.approx(takes[1], rel=0.3)


def test_what_is_not_known_has_no_weight(recordings: Recordings) -> None:
    train = batches_of(recordings, "train")
    for step in range(5):
        batch = train.batch(step)
        odd = batch.recording % 2 == 1
        assert (batch.label_weights == odd).all()
        assert (batch.cue_weights == odd).all()
        np.testing.assert_array_equal(batch.cues[odd, 0], batch.recording[odd])
        assert not batch.cues[~odd].any()
        np.testing.assert_array_equal(batch.number_weights[odd], 1)
        np.testing.assert_array_equal(
            batch.number_weights[~odd], np.tile([0, 1, 0], ((~odd).sum(), 1))
        )
        np.testing.assert_array_equal(batch.numbers[~odd, 1], np.float32(0.5))


@pytest.fixture
def mixed(tmp_path: Path) -> Recordings:
    """Three labelled recordings of two songs, and twelve songs with cues alone."""
    lines: list[dict[str, object]] = []
    for number in range(16):
        (tmp_path / f"{number}.wav").write_bytes(bytes([number]))
        lines.append({"path": f"{number}.wav", "song": number, "cues": [number]})
        if number < 4:
            lines[-1] |= {"label": "sad", "song": number // 2, "split": "train"}
    lines[3] |= {"song": 3, "split": "val"}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_recordings(tmp_path / "m.jsonl")


def mixed_batches(recordings: Recordings, share: float, batch_size: int = 8) -> AudioEmotionBatches:
    config = replace(
        CONFIG,
        data=replace(CONFIG.data, labelled_share=share),
        training=replace(CONFIG.training, batch_size=batch_size),
    )
    sounds = [[np.full((30, 8), 0.5, np.float16)] for _ in recordings.on_side("train")]
    return AudioEmotionBatches(recordings, "train", sounds, config, 6, False)


@pytest.mark.parametrize(("share", "first"), [(0.5, 4), (0.25, 2), (0.0, 1), (1.0, 7)])
def test_labelled_and_unlabelled_have_their_shares_of_every_batch(
    mixed: Recordings, share: float, first: int
) -> None:
    train = mixed_batches(mixed, share)
    taken = [train.batch(step).recording for step in range(24)]
    for recording in taken:
        assert (mixed.unlabelled[recording] == ([False] * first + [True] * (8 - first))).all()
    batch = train.batch(5)
    assert (batch.label_weights == ~mixed.unlabelled[batch.recording]).all()
    assert not batch.number_weights[first:].any()
    np.testing.assert_array_equal(batch.cue_weights, 1)
    np.testing.assert_array_equal(batch.cues[:, 0], batch.recording)
    # an epoch is one of the labelled, two clips each of two songs
    assert train.steps_per_epoch() == -(-4 // first)
    rest = np.concatenate([recording[first:] for recording in taken])
    counts = np.bincount(rest, minlength=16)[4:]
    assert counts.max() - counts.min() <= 2
    again = mixed_batches(mixed, share)
    assert all(equal(again.batch(step), train.batch(step)) for step in (17, 3))


def test_without_unlabelled_recordings_the_share_means_nothing(recordings: Recordings) -> None:
    other = replace(CONFIG, data=replace(CONFIG.data, labelled_share=0.1))
    one, two = batches_of(recordings, "train"), batches_of(recordings, "train", False, other)
    assert all(equal(one.batch(step), two.batch(step)) for step in range(5))


def test_a_batch_of_one_cannot_be_shared(mixed: Recordings) -> None:
    with pytest.raises(KmidiError, match="batch_size is 1; give 2 or more"):
        mixed_batches(mixed, 0.5, batch_size=1)


def test_semitones_are_never_masked_by_band(tmp_path: Path, recordings: Recordings) -> None:
    side = recordings.on_side("train")
    sounds = [[np.full((100, 8 + 60), 0.5, np.float16)] for _ in side]
    batches = AudioEmotionBatches(recordings, "train", sounds, CONFIG, 6, True)
    mel = np.concatenate([batches.batch(step).mel for step in range(20)])
    silent = mel == 0
    assert (silent[:, :, 8:].all(axis=2) == silent[:, :, 8:].any(axis=2)).all()
    bands = silent[:, :, :8].all(axis=1) & ~silent.all(axis=(1, 2))[:, None]
    assert bands.any()


@pytest.mark.parametrize("augment", [False, True])
def test_cues_are_those_of_the_time_of_the_clip(recordings: Recordings, augment: bool) -> None:
    # windows of one second, their number is their only cue; variants 1 and 2 are slower and faster
    tracks = [CueTrack(np.arange(10, dtype=np.float32)[:, None], 1.0, 1.0) for _ in PIECES]
    with_tracks = replace(recordings, cues=tracks)
    for split in ("train", "val"):
        sounds = []
        for number in recordings.on_side(split).tolist():
            frames = PIECES[number][2]
            sounds.append([])
            for length in (frames, 2 * frames, frames // 2):
                mel = np.full((length, 8), 0.5, np.float16)
                mel[:, 3] = np.arange(length) / length * frames / 200 + 0.5
                sounds[-1].append(mel)
        batches = AudioEmotionBatches(with_tracks, split, sounds, CONFIG, 6, False)
        if augment and split == "train":
            batches._augment = True
            batches._changed = lambda clip, rng: clip.astype(np.float32)  # type: ignore[method-assign]
        for step in range(6):
            batch = batches.batch(step)
            for row in np.flatnonzero(batch.recording >= 0):
                # ten frames are a second; a clip of two seconds holds two windows
                start = (batch.mel[row, 0, 3] - 0.5) * 20
                assert batch.cues[row, 0] == pytest.approx(min(start + 0.5, 9), abs=0.6)


def test_dropout_drops_its_share_and_keeps_the_mean(recordings: Recordings) -> None:
    train = batches_of(recordings, "train")
    keep = np.stack([train.batch(step).keep for step in range(100)])
    assert set(np.unique(keep).tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert keep.mean() == pytest.approx(1, abs=0.05)


def test_augmentation_draws_variants_gains_and_masks(recordings: Recordings) -> None:
    plain, changed = (batches_of(recordings, "train", augment) for augment in (False, True))
    for step in range(5):
        batch = plain.batch(step)
        for row, number in enumerate(batch.recording.tolist()):
            np.testing.assert_allclose(batch.mel[row, :, 0], 0.1 * number + 0.1, atol=1e-3)
            np.testing.assert_allclose(batch.mel[row, :, 2], 0.1, atol=1e-3)
    mel = np.concatenate([changed.batch(step).mel for step in range(20)])
    masked = (mel[:, :, 0] == 0).any(axis=1).mean()
    assert 0.2 < masked < 1
    found = mel[:, :, 2] - mel[:, :, 0]
    assert len(np.unique(np.round(found[np.abs(found) > 0], 2))) > 5
    # silence stays silence
    assert not mel[:, :, 3:].any()
    assert mel.max() <= 1


def test_an_empty_side_says_what_to_do(recordings: Recordings) -> None:
    with pytest.raises(KmidiError, match="no recordings in 'test'; a manifest has to name"):
        batches_of(recordings, "test")
