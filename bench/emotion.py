"""How well emotion is recognised in music nobody trained on: `python -m bench.emotion`.

Every recording with numbers is held out once, together with all that share its value of
`--leave-out` (with `--folds N`, several values at a time), and a network is trained on the others
for a fixed number of steps: nothing is chosen by what is held out. Recordings without labels are
always trained on and never held out. Beside it, with the same folds:

    mel statistics     ridge regression on mean, deviation and movement of every mel band; its
                       strength is chosen within the training folds
    notes              the ridge on symbolic features of `kmidi_mlx.music.mood`, which reads the
                       MIDI file (key `midi` of the manifest), fitted anew for every fold
    training mean      the mean of the training recordings, every time

R² is over the pooled estimates of whole recordings. The calibration error is that of clips, with
a temperature that was fitted to other songs. `--streaming` measures only the cost of listening: a
stream of samples in blocks of 0.1 s through spectrogram and network, on one recording.

With `--checkpoint DIR` no network is trained: a finished one, which must not know the recordings,
listens to those as written. One that learnt estimates of the mood model (`prepare audio-emotion
--label-from-notes`) tells emotion on its steering scale; `--scale steering` maps that back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from bench.report import Row, add_arguments, publish, spread
from kmidi_mlx.audio.files import read_audio
from kmidi_mlx.command import CommandParser, add_config_arguments, run
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.console import Progress
from kmidi_mlx.data.audio_emotion import Recordings, cache_folder, hearing_of, spectrograms
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.emotion_recognizer_stream import EmotionStream
from kmidi_mlx.models.loading import LoadedRecognizer, load_recognizer
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.mood import cell_statistics, to_rated
from kmidi_mlx.music.mood_fit import RatedPieces, cross_validate
from kmidi_mlx.runs.emotion_measures import (
    ClipEstimates,
    calibration_of,
    label_score,
    number_scores,
    per_recording,
)
from kmidi_mlx.runs.emotion_task import open_batches, open_recordings
from kmidi_mlx.runs.schedule import learning_rate
from kmidi_mlx.training.emotion_task import EmotionTask, estimate_clips
from kmidi_mlx.training.run import make_step

COLUMNS = (
    "model",
    "recordings",
    "folds",
    "valence_r2",
    "arousal_r2",
    "valence_r",
    "arousal_r",
    "valence_error",
    "arousal_error",
    "accuracy",
    "ece",
    "ece_calibrated",
    "seconds",
)
STREAM_COLUMNS = ("parameters", "block_ms", "block_ms_p10", "block_ms_p90", "real_time_factor")
BLOCK_SECONDS = 0.1
STRENGTHS = tuple(float(10.0 ** (power / 2)) for power in range(11))
TRAIN, VAL, ASIDE = 0, 1, 2
Floats = NDArray[np.float64]


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    parser = CommandParser(prog="python -m bench.emotion", description=__doc__)
    parser.add_argument("--audio-manifest", metavar="FILE", help="sets data.manifest")
    parser.add_argument("--leave-out", default="franchise", metavar="KEY", help="of the manifest")
    parser.add_argument("--folds", type=int, default=8, help="0: one for each value of the key")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each network")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a trained recogniser")
    parser.add_argument(
        "--scale", choices=("rated", "steering"), default="rated", help="of its numbers"
    )
    parser.add_argument("--streaming", action="store_true", help="only the cost of listening")
    add_config_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args(argv)
    overrides = list(args.overrides)
    if args.audio_manifest:
        overrides.append(f'data.manifest="{args.audio_manifest}"')
    config = load_config("emotion_recognizer", args.config_files, overrides)
    assert isinstance(config, EmotionRecognizerConfig)
    loaded = None
    if args.checkpoint is not None:
        loaded = load_recognizer(args.checkpoint)
        data = replace(loaded.config.data, manifest=config.data.manifest, cache=config.data.cache)
        config = replace(loaded.config, data=data)
    recordings = open_recordings(config)
    if args.streaming:
        publish("emotion", [streaming(config, recordings)], STREAM_COLUMNS, args)
        return 0
    fold = folds_of(recordings, args.leave_out, args.folds)
    if loaded is not None:
        listen = partial(heard, loaded, config, recordings, args.scale)
        row = score("checkpoint", recordings, fold, listen) | {"folds": ""}
        rows = [row, notes_row(recordings, fold)]
        publish("emotion", rows, COLUMNS, args)
        return 0
    rows = [
        score("network", recordings, fold, lambda: networks(config, recordings, fold, args.steps)),
        score("mel statistics", recordings, fold, lambda: mel_ridge(config, recordings, fold)),
        notes_row(recordings, fold),
        score("training mean", recordings, fold, lambda: means(recordings, fold)),
    ]
    rows[0] |= {
        "steps": args.steps,
        "parameters": parameters_of(config, recordings),
        "unlabelled": int(recordings.unlabelled.sum()),
    }
    for row in rows:
        row["leave_out"] = args.leave_out
    publish("emotion", rows, COLUMNS, args)
    return 0


def folds_of(recordings: Recordings, key: str, count: int) -> NDArray[np.int64]:
    """Give every recording the number of the fold that holds it out, equal ones together.

    Recordings without labels are never held out: -1.
    """
    rated = ~recordings.unlabelled
    values = [row.values.get(key) if rated[i] else None for i, row in enumerate(recordings.rows)]
    for row, value, needed in zip(recordings.rows, values, rated, strict=True):
        if needed and value is None:
            raise KmidiError(f"{row.place}: the key {key!r} is missing; name another --leave-out.")
    sizes: dict[str, int] = {}
    for value in values:
        if value is not None:
            sizes[str(value)] = sizes.get(str(value), 0) + 1
    count = min(count or len(sizes), len(sizes))
    if count < 2:
        raise KmidiError(f"all recordings have one {key!r}; there is nothing to leave out.")
    load, place = np.zeros(count, np.int64), {}
    for value in sorted(sizes, key=lambda value: (-sizes[value], value)):
        place[value] = int(load.argmin())
        load[place[value]] += sizes[value]
    return np.array([-1 if value is None else place[str(value)] for value in values])


def originals(recordings: Recordings) -> NDArray[np.bool_]:
    """Which recordings are music as written, with numbers; only those are held out."""
    plain = [not row.values.get("variant") for row in recordings.rows]
    return np.array(plain) & (recordings.known[:, :2].min(axis=1) > 0)


def sides(recordings: Recordings, fold: NDArray[np.int64], held_out: int) -> NDArray[np.uint8]:
    """Sides of the recordings while a fold is held out; its variants are on neither."""
    outside = np.where(originals(recordings), VAL, ASIDE)
    side: NDArray[np.uint8] = np.where(fold == held_out, outside, TRAIN).astype(np.uint8)
    return side


def score(
    name: str,
    recordings: Recordings,
    fold: NDArray[np.int64],
    estimate: Callable[[], ClipEstimates],
) -> Row:
    """Measure the pooled estimates of everything that was held out."""
    started = time.perf_counter()
    clips = estimate()
    seconds = time.perf_counter() - started
    whole = per_recording(clips)
    numbers = number_scores(whole, recordings, np.full(3, np.nan))
    row: Row = {
        "model": name,
        "recordings": len(whole.recording),
        "folds": int(fold.max()) + 1,
        "seconds": seconds,
    }
    for axis in ("valence", "arousal"):
        found = numbers[axis]
        row |= {f"{axis}_r2": found.r2, f"{axis}_r": found.r, f"{axis}_error": found.error}
    labelled = label_score(whole, recordings, None)
    calibration = calibration_of(clips, recordings, None)
    if labelled and calibration:
        row |= {
            "accuracy": labelled.accuracy,
            "macro_f1": labelled.macro_f1,
            "ece": calibration.before,
            "ece_calibrated": calibration.after,
            "temperature": calibration.temperature,
        }
    return {key: "" if value is None else value for key, value in row.items()}


def networks(
    config: EmotionRecognizerConfig, recordings: Recordings, fold: NDArray[np.int64], steps: int
) -> ClipEstimates:
    """Train a network without each fold and let it listen to that fold."""
    parts = []
    with Progress((int(fold.max()) + 1) * steps, "train", "steps") as progress:
        for held_out in range(int(fold.max()) + 1):
            task = EmotionTask(config, recordings.with_split(sides(recordings, fold, held_out)))
            step = make_step(task)
            with task.stream(0) as batches:
                for number in range(steps):
                    rate = learning_rate(number, steps, config.optimizer)
                    measures = step.run([next(batches)], rate)
                    progress.advance(1, fold=held_out, loss=measures["loss"])
            with step.averaged():
                parts.append(estimate_clips(task.model, task.held_out))
            found = number_scores(per_recording(parts[-1]), recordings, np.full(3, np.nan))
            progress.note(
                f"fold {held_out}: valence error {found['valence'].error:.3f}, arousal error "
                f"{found['arousal'].error:.3f} of {found['valence'].count} recordings"
            )
    return together(parts)


def heard(
    loaded: LoadedRecognizer, config: EmotionRecognizerConfig, recordings: Recordings, scale: str
) -> ClipEstimates:
    """Let a trained network listen to all music as written."""
    chosen = recordings.with_split(np.where(originals(recordings), VAL, ASIDE).astype(np.uint8))
    batches = open_batches(config, chosen, "val", loaded.model.pooled_dim)
    with Progress(batches.steps_per_epoch(), "listen", "batches") as progress:
        clips = estimate_clips(loaded.model, batches, progress.advance)
    if scale == "rated":
        return clips
    numbers = clips.numbers.astype(np.float64)
    numbers[:, :2] = to_rated(numbers[:, :2])
    return replace(clips, numbers=numbers)


def together(parts: list[ClipEstimates]) -> ClipEstimates:
    """Join the estimates of the folds."""
    return ClipEstimates(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.recording for part in parts]),
        np.concatenate([part.frames for part in parts]),
    )


def mel_ridge(
    config: EmotionRecognizerConfig, recordings: Recordings, fold: NDArray[np.int64]
) -> ClipEstimates:
    """Ridge regression of the numbers on statistics of the mel bands."""
    chosen = np.flatnonzero(originals(recordings))
    sounds = spectrograms(
        recordings, chosen.tolist(), hearing_of(config), cache_folder(config), workers=1
    )
    bands = config.model.n_mels
    features = np.stack(
        [_statistics(np.asarray(sound[0][:, :bands], np.float64)) for sound in sounds]
    )
    truth = recordings.numbers[chosen].astype(np.float64)
    fold = fold[chosen]
    estimate = np.zeros_like(truth)
    for held_out in np.unique(fold):
        train = fold != held_out
        errors = []
        for strength in STRENGTHS:
            inner = np.zeros_like(truth)
            for other in np.unique(fold[train]):
                fit, use = train & (fold != other), fold == other
                inner[use] = _ridge(features[fit], truth[fit], features[use], strength)
            errors.append(np.square(inner - truth)[train].sum(axis=0))
        best = np.argmin(errors, axis=0)
        for column, index in enumerate(best):
            estimate[~train, column] = _ridge(
                features[train], truth[train], features[~train], STRENGTHS[index]
            )[:, column]
    return _whole(estimate, chosen)


def _statistics(mel: Floats) -> Floats:
    return np.concatenate([mel.mean(0), mel.std(0), np.abs(np.diff(mel, axis=0)).mean(0)])


def _ridge(x: Floats, y: Floats, new: Floats, strength: float) -> Floats:
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, new = (x - mean) / sd, (new - mean) / sd
    dual = np.linalg.solve(x @ x.T + strength * np.eye(len(x)), y - y.mean(axis=0))
    found: Floats = new @ (x.T @ dual) + y.mean(axis=0)
    return found


def _whole(numbers: Floats, recording: NDArray[np.int64]) -> ClipEstimates:
    count = len(recording)
    return ClipEstimates(numbers, np.zeros((count, 0)), recording, np.ones(count, np.int64))


def means(recordings: Recordings, fold: NDArray[np.int64]) -> ClipEstimates:
    """The mean of the recordings of the other folds."""
    chosen = np.flatnonzero(originals(recordings))
    truth, fold = recordings.numbers[chosen].astype(np.float64), fold[chosen]
    return _whole(np.stack([truth[fold != own].mean(axis=0) for own in fold]), chosen)


def notes_row(recordings: Recordings, fold: NDArray[np.int64]) -> Row:
    """The mood ridge on the notes of the same pieces, with the same folds."""
    chosen = np.flatnonzero(originals(recordings))
    started = time.perf_counter()
    pieces = RatedPieces(
        [cell_statistics(read_midi(recordings.rows[i].file("midi"))) for i in chosen],
        recordings.numbers[chosen, :2].astype(np.float64),
        np.array([f"fold {number}" for number in fold[chosen]]),
    )
    found = cross_validate(pieces)["piece"]
    row: Row = {
        "model": "notes",
        "recordings": len(chosen),
        "folds": int(fold.max()) + 1,
        "seconds": time.perf_counter() - started,
    }
    for index, axis in enumerate(("valence", "arousal")):
        row |= {f"{axis}_r2": float(found.r2[index]), f"{axis}_r": float(found.r[index])}
    return row


def parameters_of(config: EmotionRecognizerConfig, recordings: Recordings) -> int:
    """Number of weights."""
    model = EmotionRecognizer(_resolved(config, recordings).model)
    return sum(int(value.size) for _, value in tree_flatten(model.parameters()))


def _resolved(config: EmotionRecognizerConfig, recordings: Recordings) -> EmotionRecognizerConfig:
    model = replace(config.model, labels=recordings.labels, num_cues=recordings.num_cues)
    return replace(config, model=model)


def streaming(config: EmotionRecognizerConfig, recordings: Recordings) -> Row:
    """Time a stream; the weights are random, which costs the same."""
    config = _resolved(config, recordings)
    model = EmotionRecognizer(config.model)
    model.initialise(0)
    stream = EmotionStream(model, config)
    path = Path(recordings.rows[0].file("path"))
    sound = read_audio(path, config.data.sample_rate)
    size = round(BLOCK_SECONDS * config.data.sample_rate)
    block_ms = []
    for start in range(0, len(sound) - size + 1, size):
        started = time.perf_counter()
        stream.push(sound[start : start + size])
        block_ms.append(1e3 * (time.perf_counter() - started))
    return {
        "model": "streaming",
        "parameters": parameters_of(config, recordings),
        "device": str(mx.default_device().type),
        **spread("block_ms", block_ms[5:]),
        "real_time_factor": float(np.mean(block_ms[5:])) / (1e3 * BLOCK_SECONDS),
    }


if __name__ == "__main__":
    sys.exit(run(main))
