from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx import emotion
from kmidi_mlx.config import MidiDataConfig
from kmidi_mlx.data.batches import Batch, MidiBatches
from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.prefetch import Prefetcher
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import PAD_TOKEN, START_TOKEN, TIME_SHIFT, VOCABULARY_SIZE
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes

CONFIG = MidiDataConfig(sequence_length=64, max_chords=8)
PLAIN = dataclasses.replace(CONFIG, emotion_dropout=0.0, harmony_dropout=0.0)


def same(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(getattr(a, item.name), getattr(b, item.name))
        for item in dataclasses.fields(Batch)
    )


def test_a_batch_is_a_function_of_seed_and_step(prepared: ShardReader) -> None:
    first = MidiBatches(prepared, "train", CONFIG, 4, 7, True)
    count = 3 * first.steps_per_epoch()
    made = [first.batch(step) for step in range(count)]
    resumed = MidiBatches(ShardReader(prepared.folder), "train", CONFIG, 4, 7, True)
    for step in (count - 1, 5, count // 2, 0):
        assert same(resumed.batch(step), made[step])
    with Prefetcher(resumed.batch, count // 2, 2) as ahead:
        assert all(same(next(ahead), made[step]) for step in range(count // 2, count))
    other = MidiBatches(prepared, "train", CONFIG, 4, 8, True)
    assert not same(other.batch(0), made[0])
    assert not same(made[0], made[1])


@pytest.mark.parametrize(("split", "augment"), [("train", True), ("train", False), ("val", False)])
def test_shapes_types_and_ranges(prepared: ShardReader, split: str, augment: bool) -> None:
    batches = MidiBatches(prepared, split, CONFIG, 5, 0, augment)
    for step in range(batches.steps_per_epoch() + 2):
        batch = batches.batch(step)
        shapes = {item.name: getattr(batch, item.name).shape for item in dataclasses.fields(Batch)}
        assert shapes == {
            "inputs": (5, 64),
            "targets": (5, 64),
            "weights": (5, 64),
            "emotion": (5, 64),
            "chords": (5, 8),
            "keys": (5,),
            "chord_index": (5, 64),
        }
        real = batch.weights > 0
        assert set(np.unique(batch.weights)) <= {0.0, 1.0}
        assert np.array_equal(real, np.sort(real)[:, ::-1])
        assert batch.targets[real].max() < VOCABULARY_SIZE
        assert (batch.inputs[~real] == PAD_TOKEN).all()
        assert (batch.inputs[real] != PAD_TOKEN).all()
        # each input is the target before it; only the first may be START
        assert (batch.inputs[:, 1:] == batch.targets[:, :-1])[real[:, 1:]].all()
        assert (batch.inputs[:, 1:] != START_TOKEN).all()
        assert (batch.chords[:, 0] == 0).all()
        assert batch.chord_index.min() >= 0
        assert batch.chord_index.max() < 8


def test_chord_index_points_at_the_chord_in_force(prepared: ShardReader) -> None:
    batches = MidiBatches(prepared, "val", PLAIN, 4, 0, False)
    by_start = {
        tuple(prepared.tokens(piece)[:40].tolist()): piece
        for piece in prepared.split("val").tolist()
    }
    found = set()
    for step in range(batches.steps_per_epoch()):
        batch = batches.batch(step)
        for row in np.flatnonzero(batch.inputs[:, 0] == START_TOKEN).tolist():
            piece = by_start[tuple(batch.targets[row, :40].tolist())]
            own = slice(*prepared.pieces.chord_offset[piece : piece + 2].tolist())
            changes = list(
                zip(prepared.pieces.chord_step[own], prepared.pieces.chord[own], strict=True)
            )
            at = 0
            for place in range(int(batch.weights[row].sum())):
                wanted = 0
                for when, chord in changes:
                    wanted = int(chord) if when <= at else wanted
                got = int(batch.chords[row, batch.chord_index[row, place]])
                assert got == wanted
                found.add(got)
                event = int(batch.targets[row, place])
                at += event - TIME_SHIFT + 1 if TIME_SHIFT <= event < 356 else 0
    assert len(found) > 2


def test_too_many_chords_leave_the_rarest_unknown(prepared: ShardReader) -> None:
    wide = MidiBatches(prepared, "train", PLAIN, 16, 0, False)
    narrow = MidiBatches(prepared, "train", dataclasses.replace(PLAIN, max_chords=2), 16, 0, False)
    a, b = wide.batch(0), narrow.batch(0)
    assert b.chords.shape == (16, 2)
    for row in range(16):
        in_a, in_b = a.chords[row][a.chord_index[row]], b.chords[row][b.chord_index[row]]
        kept = in_b != 0
        assert (in_a == in_b)[kept].all()
        counts = Counter(in_a[in_a != 0].tolist())
        assert kept.sum() == max(counts.values(), default=0)


def test_fixed_sides_cover_every_token_once_and_evenly(prepared: ShardReader) -> None:
    batches = MidiBatches(prepared, "val", CONFIG, 4, 0, False)
    pieces = prepared.split("val")
    pieces = pieces[~prepared.pieces.duplicate[pieces]]
    tokens = np.concatenate([prepared.tokens(piece) for piece in pieces.tolist()])
    epoch = [batches.batch(step) for step in range(batches.steps_per_epoch())]
    targets = np.concatenate([batch.targets[batch.weights > 0] for batch in epoch])
    assert sorted(targets.tolist()) == sorted(tokens.tolist())
    assert sum((batch.inputs == START_TOKEN).sum() for batch in epoch) == len(pieces)
    assert same(batches.batch(batches.steps_per_epoch() + 1), epoch[1])
    assert all((batch.emotion[batch.weights[:, 0] > 0, 3] == 1.0).all() for batch in epoch)


def test_windows_are_counted_by_the_longest_version(prepared: ShardReader) -> None:
    batches = MidiBatches(prepared, "train", CONFIG, 4, 0, True)
    longest: dict[int, int] = {}
    for piece in prepared.split("train").tolist():
        song = int(prepared.pieces.song[piece])
        longest[song] = max(longest.get(song, 0), len(prepared.tokens(piece)))
    windows = sum(-(-length // 64) for length in longest.values())
    assert batches.windows_per_epoch == windows
    assert batches.steps_per_epoch() == -(-windows // 4)
    assert batches.steps_per_epoch(3) == -(-windows // 12)


def test_ten_versions_weigh_no_more_than_one_and_duplicates_nothing(tmp_path: Path) -> None:
    rows = []
    for song, pitch, versions in (("a", 30, 1), ("b", 60, 5), ("c", 90, 1)):
        for version in range(versions):
            rng = np.random.default_rng(version)
            onset = np.arange(300) * 0.1
            notes = Notes.build(
                pitch + rng.integers(0, 5, 300), np.full(300, 64), onset, onset + 0.05
            )
            name = f"{song}{version}.mid"
            write_midi(notes, tmp_path / name)
            rows.append({"path": name, "song": song, "split": "train"})
    for copy in range(4):
        (tmp_path / f"copy{copy}.mid").write_bytes((tmp_path / "c0.mid").read_bytes())
        rows.append({"path": f"copy{copy}.mid", "song": f"copy{copy}", "split": "train"})
    write_manifest(tmp_path / "m.jsonl", rows)
    prepare_midi([tmp_path / "m.jsonl"], tmp_path / "out", workers=1)
    batches = MidiBatches(ShardReader(tmp_path / "out"), "train", CONFIG, 3, 0, False)
    assert batches.windows_per_epoch % 3 == 0
    epoch = [batches.batch(step) for step in range(batches.steps_per_epoch())]
    pitches = [row[row < 128].min() // 30 for batch in epoch for row in batch.targets]
    counts = Counter(int(song) for song in pitches)
    assert len(set(counts.values())) == 1
    assert set(counts) == {1, 2, 3}


def test_conditions_are_dropped_as_often_as_told(prepared: ShardReader) -> None:
    config = dataclasses.replace(CONFIG, emotion_dropout=0.25, harmony_dropout=0.5)
    batch = MidiBatches(prepared, "train", config, 1500, 0, True).batch(0)
    plain = MidiBatches(prepared, "train", PLAIN, 1500, 0, True).batch(0)
    assert np.array_equal(batch.targets, plain.targets)
    dropped = ~batch.emotion.any(axis=1)
    assert 0.2 < dropped.mean() < 0.3
    assert (plain.emotion[:, 3] == 1.0).all()
    assert np.array_equal(batch.emotion[~dropped], plain.emotion[~dropped])
    # without emotion there is no harmony either: that is what guidance compares with
    assert not batch.keys[dropped].any()
    assert not batch.chord_index[dropped].any()
    with_key = plain.keys > 0
    assert 0.31 < (batch.keys[with_key] > 0).mean() < 0.44


def test_start_probability(prepared: ShardReader) -> None:
    for probability, low, high in ((0.0, 0.0, 0.3), (0.6, 0.55, 0.75), (1.0, 1.0, 1.0)):
        config = dataclasses.replace(CONFIG, start_probability=probability)
        batch = MidiBatches(prepared, "train", config, 400, 0, False).batch(0)
        assert low <= (batch.inputs[:, 0] == START_TOKEN).mean() <= high


def test_emotion_is_the_vector_of_the_pieces_mood(prepared: ShardReader) -> None:
    rated = np.flatnonzero(prepared.pieces.mood_source == 1)
    assert len(rated) == 3
    first = prepared.pieces.mood_offset[rated[0]]
    point = (float(prepared.pieces.valence[first]), float(prepared.pieces.arousal[first]))
    wanted = emotion.encode(emotion.Emotion.of(*point))
    batch = MidiBatches(prepared, "train", PLAIN, 200, 0, True).batch(0)
    hits = np.isclose(batch.emotion, wanted, atol=1e-6).all(axis=1)
    assert 0 < hits.sum() < 100


def test_what_cannot_be_drawn_from_is_an_error(prepared: ShardReader) -> None:
    with pytest.raises(KmidiError, match="no pieces in 'test'"):
        MidiBatches(prepared, "test", CONFIG, 4, 0, False)
    with pytest.raises(KmidiError, match="only 'train' can be augmented"):
        MidiBatches(prepared, "val", CONFIG, 4, 0, True)
    with pytest.raises(KmidiError, match="batch_size"):
        MidiBatches(prepared, "train", CONFIG, 0, 0, True)
