"""Batches of clips of labelled recordings, as a pure function of seed and step.

Songs are drawn, not files: an epoch has as many clips of a song as its longest recording fills, so
ten renderings of a song weigh no more than one. Where some recordings have cues alone, they and the
labelled ones are drawn apart, each for its share of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.augment import mask_frequency, mask_time
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.audio_emotion import Recordings, Spectrogram
from kmidi_mlx.errors import KmidiError

__all__ = ["AudioEmotionBatches", "Clips"]

# First words of the seeds of independent streams.
_ORDER, _DRAWS, _UNLABELLED_ORDER = 1, 2, 3
# Louder or softer by up to 6 dB of the 100 dB that 0 to 1 stands for.
_LARGEST_GAIN = 0.06
_ADVICE = {
    "train": "give the manifest more songs, or a lower data.val_share",
    "val": "give the manifest a second song, or name val in it",
    "test": "a manifest has to name what is to be tested on",
}


@dataclass(frozen=True, eq=False)
class Clips:
    """B clips of T frames.

    Attributes:
        mel: float32 (B, T, bands), frames as `hear` gives them; silence after the end.
        frames: int32 (B,), frames before that, at least one patch.
        numbers: float32 (B, 3), valence, arousal, intensity.
        number_weights: float32 (B, 3), 1 where the number is known, 0 elsewhere and on padding.
        labels: int32 (B,), label ids; 0 where none is known.
        label_weights: float32 (B,), 1 where a label is known, 0 elsewhere and on padding.
        cues: float32 (B, cues), those of the clip's own time; 0 where they are not known.
        cue_weights: float32 (B,), 1 where cues are known, 0 elsewhere and on padding.
        keep: float32 (B, P), dropout's factors for the pooled features; 1 on fixed sides.
        recording: int32 (B,), number of the recording; -1: padding.
    """

    mel: NDArray[np.float32]
    frames: NDArray[np.int32]
    numbers: NDArray[np.float32]
    number_weights: NDArray[np.float32]
    labels: NDArray[np.int32]
    label_weights: NDArray[np.float32]
    cues: NDArray[np.float32]
    cue_weights: NDArray[np.float32]
    keep: NDArray[np.float32]
    recording: NDArray[np.int32]


class AudioEmotionBatches:
    """Batches of one side.

    On `train` clips are drawn at random without end, and pooled features are dropped; with
    `augment`, spectrograms are made louder or softer and masked. Where there are labelled and
    unlabelled recordings, the first `data.labelled_share` of every batch is labelled, at least one
    clip and not all; an epoch is one of the labelled. Other sides are fixed: every recording once
    from start to end, the last batch filled up with padding.

    Args:
        recordings: what is known of them.
        split: `train`, `val` or `test`.
        sounds: for each recording of that side, in order, its spectrograms: as it is, then
            variants; fixed sides use the first only.
        config: the run.
        pooled_dim: P, width of the model's pooled features.
        augment: whether to draw variants, gains and masks; only on `train`.

    Raises:
        KmidiError: if the side has no recordings.
    """

    def __init__(
        self,
        recordings: Recordings,
        split: str,
        sounds: Sequence[Sequence[Spectrogram]],
        config: EmotionRecognizerConfig,
        pooled_dim: int,
        augment: bool,
    ) -> None:
        self._recordings = recordings
        self._numbers = recordings.on_side(split)
        if not len(self._numbers):
            manifest = recordings.rows[0].manifest
            raise KmidiError(f"{manifest} has no recordings in {split!r}; {_ADVICE[split]}.")
        self._sounds = sounds
        self._augment = augment
        self._fixed = split != "train"
        self._seed = config.training.seed
        self._dropout = config.data.dropout
        self._pooled_dim = pooled_dim
        self._patch = config.model.patch_frames
        self._mel_bands = config.model.n_mels
        self.batch_size = config.training.batch_size
        self._frame_seconds = config.data.hop_length / config.data.sample_rate
        self.clip_frames = max(self._patch, round(config.data.clip_seconds / self._frame_seconds))
        lengths = np.array([len(versions[0]) for versions in sounds])
        counts = np.maximum(1, -(-lengths // self.clip_frames))
        if self._fixed:
            # (place, clip within the recording)
            self._clips = [(i, c) for i, count in enumerate(counts) for c in range(count)]
        else:
            songs = recordings.song[self._numbers]
            unlabelled = recordings.unlabelled[self._numbers]
            pools = [
                _SongOrder(songs, np.flatnonzero(chosen), counts, (word, self._seed))
                for chosen, word in ((~unlabelled, _ORDER), (unlabelled, _UNLABELLED_ORDER))
                if chosen.any()
            ]
            self._pools = [(pools[0], self.batch_size)]
            if len(pools) > 1:
                if self.batch_size < 2:
                    raise KmidiError(
                        "training.batch_size is 1; give 2 or more where recordings without labels "
                        "are to be in every batch."
                    )
                first = round(self.batch_size * config.data.labelled_share)
                first = min(max(first, 1), self.batch_size - 1)
                self._pools = [(pools[0], first), (pools[1], self.batch_size - first)]

    @property
    def clips_per_epoch(self) -> int:
        """Clips that are seen once in an epoch; of the labelled ones where there are both."""
        return len(self._clips) if self._fixed else self._pools[0][0].clips

    def steps_per_epoch(self, grad_accum_steps: int = 1) -> int:
        """Return the optimiser steps that see an epoch's clips, rounded up."""
        rows = self.batch_size if self._fixed else self._pools[0][1]
        return -(-self.clips_per_epoch // (rows * grad_accum_steps))

    def batch(self, step: int) -> Clips:
        """Return batch `step`, the same one whenever it is asked for."""
        count, known = self.batch_size, self._recordings
        bands = self._sounds[0][0].shape[1]
        mel = np.zeros((count, self.clip_frames, bands), np.float32)
        frames = np.full(count, self._patch, np.int32)
        recording = np.full(count, -1, np.int32)
        keep = np.ones((count, self._pooled_dim), np.float32)
        rng = np.random.default_rng((_DRAWS, self._seed, step))
        cuts = self._fixed_cuts(step) if self._fixed else self._random_cuts(step, rng)
        cues = np.zeros((count, known.num_cues), np.float32)
        cue_weights = np.zeros(count, np.float32)
        for row, (place, clip, start_seconds) in enumerate(cuts):
            recording[row] = self._numbers[place]
            track = known.cues[recording[row]]
            if track is not None:
                end_seconds = start_seconds + len(clip) * self._frame_seconds
                cues[row] = track.during(start_seconds, end_seconds)
                cue_weights[row] = 1.0
            mel[row, : len(clip)] = self._changed(clip, rng) if self._augment else clip
            frames[row] = max(len(clip), self._patch)
        if not self._fixed and self._dropout:
            keep = (rng.random(keep.shape) >= self._dropout).astype(np.float32)
            keep /= np.float32(1.0 - self._dropout)
        real = recording >= 0
        label = np.where(real, known.label[recording], -1)
        return Clips(
            mel=mel,
            frames=frames,
            numbers=known.numbers[recording] * real[:, None],
            number_weights=known.known[recording] * real[:, None],
            labels=np.maximum(label, 0).astype(np.int32),
            label_weights=(label >= 0).astype(np.float32),
            cues=cues,
            cue_weights=cue_weights,
            keep=keep,
            recording=recording,
        )

    def _fixed_cuts(self, step: int) -> list[tuple[int, Spectrogram, float]]:
        """Places, clips and the seconds at which they start."""
        first = step % self.steps_per_epoch() * self.batch_size
        size = self.clip_frames
        return [
            (
                place,
                self._sounds[place][0][clip * size : (clip + 1) * size],
                clip * size * self._frame_seconds,
            )
            for place, clip in self._clips[first : first + self.batch_size]
        ]

    def _random_cuts(
        self, step: int, rng: np.random.Generator
    ) -> list[tuple[int, Spectrogram, float]]:
        songs = [
            pool.song(step * count + row) for pool, count in self._pools for row in range(count)
        ]
        cuts = []
        for members, draw in zip(songs, rng.random((self.batch_size, 3)), strict=True):
            place = int(members[int(draw[0] * len(members))])
            versions = self._sounds[place] if self._augment else self._sounds[place][:1]
            sound = versions[int(draw[1] * len(versions))]
            start = int(draw[2] * (max(0, len(sound) - self.clip_frames) + 1))
            # in the time of the recording as it is: variants may be faster or slower
            seconds = start * self._frame_seconds * len(versions[0]) / len(sound)
            cuts.append((place, sound[start : start + self.clip_frames], seconds))
        return cuts

    def _changed(self, clip: Spectrogram, rng: np.random.Generator) -> NDArray[np.float32]:
        gain = np.float32(rng.uniform(-_LARGEST_GAIN, _LARGEST_GAIN))
        loud = clip.astype(np.float32)
        # silence stays silence
        loud = np.where(loud > 0.0, np.clip(loud + gain, 0.0, 1.0), np.float32(0.0))
        masked = mask_time(loud.T, rng)
        # a key is known by all of its degrees, so semitones are only masked in time
        masked[: self._mel_bands] = mask_frequency(masked[: self._mel_bands], rng)
        return masked.T


class _SongOrder:
    """An endless order of songs; in every epoch each comes as often as its longest recording fills.

    Args:
        songs: int (n,), song of each recording of a side.
        chosen: places among them that are drawn from.
        counts: int (n,), clips that each recording fills.
        seed: of the order.
    """

    def __init__(
        self,
        songs: NDArray[np.int32],
        chosen: NDArray[np.int64],
        counts: NDArray[np.int64],
        seed: tuple[int, int],
    ) -> None:
        self._members: list[NDArray[np.int64]] = [
            chosen[songs[chosen] == song] for song in np.unique(songs[chosen])
        ]
        self._songs = np.repeat(
            np.arange(len(self._members)), [counts[members].max() for members in self._members]
        )
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    @property
    def clips(self) -> int:
        """Clips of an epoch."""
        return len(self._songs)

    def song(self, number: int) -> NDArray[np.int64]:
        """Return the recordings of the song that stands at place `number`."""
        epoch, place = divmod(number, self.clips)
        if self._order[0] != epoch:
            rng = np.random.default_rng((*self._seed, epoch))
            self._order = (epoch, rng.permutation(self.clips))
        return self._members[int(self._songs[self._order[1][place]])]
