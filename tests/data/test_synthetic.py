from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.manifest import read_manifest
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.synthetic import Practice, compose, write_synthetic
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.chords import parse_chord, parse_key
from kmidi_mlx.music.mood import mood

unit = st.floats(-1, 1)


@settings(max_examples=40, deadline=None)
@given(unit, unit, st.integers(0, 2**31 - 1))
def test_every_mood_makes_playable_music(valence: float, arousal: float, seed: int) -> None:
    piece = compose(valence, arousal, np.random.default_rng(seed))
    notes = piece.notes
    assert len(notes) > 60
    assert notes.pitch.min() >= 21
    assert notes.pitch.max() <= 108
    assert 20.0 < notes.duration_seconds < 150.0
    assert parse_key(piece.key) > 0
    for chord, following in zip(piece.chords, piece.chords[1:], strict=False):
        assert parse_chord(chord[2]) > 1
        assert chord[0] < chord[1] == following[0]
    # every note sounds over some chord
    assert piece.chords[0][0] == 0.0
    assert notes.onset_seconds.max() < piece.chords[-1][1]


def pieces(valence: float, arousal: float) -> list[Practice]:
    return [compose(valence, arousal, np.random.default_rng(seed)) for seed in range(12)]


def test_music_follows_the_mood() -> None:
    calm, wild = pieces(0.3, -0.8), pieces(0.3, 0.8)
    sad, glad = pieces(-0.8, 0.0), pieces(0.8, 0.0)

    def mean(group: list[Practice], what: str) -> float:
        values = {
            "tempo": [p.tempo for p in group],
            "velocity": [p.notes.velocity.mean() for p in group],
            "rate": [len(p.notes) / p.notes.duration_seconds for p in group],
            "pitch": [p.notes.pitch.mean() for p in group],
            "major": [float(p.key.endswith("maj")) for p in group],
        }
        return float(np.mean(values[what]))

    for what in ("tempo", "velocity", "rate"):
        assert mean(wild, what) > 1.2 * mean(calm, what)
    assert mean(sad, "major") < 0.1
    assert mean(glad, "major") > 0.9
    assert mean(glad, "pitch") > mean(sad, "pitch")


def test_the_label_model_hears_the_arousal() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (40, 2))
    heard = [mood(compose(*point, rng).notes) for point in points]
    assert np.corrcoef(points[:, 1], np.array(heard)[:, 1])[0, 1] > 0.7


def test_melody_fits_the_chords() -> None:
    for piece in pieces(0.5, 0.2):
        notes = piece.notes
        fits = []
        for start, end, symbol in piece.chords:
            here = (notes.onset_seconds >= start + 0.02) & (notes.onset_seconds < end - 0.02)
            root, quality = divmod(parse_chord(symbol) - 2, 9)
            tones = {0: (0, 4, 7), 1: (0, 3, 7), 6: (0, 3, 6)}[quality]
            fits += np.isin((notes.pitch[here].astype(int) - root) % 12, tones).tolist()
        assert np.mean(fits) > 0.7


def test_equal_arguments_give_equal_files(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 5), ("more", 7)):
        write_synthetic(tmp_path / name, count, seed=3, val_share=0.2)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        if name.endswith(".mid"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()
    write_synthetic(tmp_path / "other", 5, seed=4, val_share=0.2)
    assert (tmp_path / "other" / files[0]).read_bytes() != (tmp_path / "a" / files[0]).read_bytes()


@pytest.mark.parametrize(
    ("count", "share", "val"),
    [(1, 0.5, 0), (2, 0.01, 1), (20, 0.05, 1), (20, 0.2, 4), (9, 0.0, 0), (3, 1.0, 3)],
)
def test_sides(tmp_path: Path, count: int, share: float, val: int) -> None:
    rows = read_manifest(write_synthetic(tmp_path, count, seed=0, val_share=share))
    assert len(rows) == count
    assert sum(row.values["split"] == "val" for row in rows) == val


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_what_is_held_out_has_all_moods(tmp_path: Path, share: float) -> None:
    rows = read_manifest(write_synthetic(tmp_path, 120, seed=0, val_share=share))
    held_out = [row.values for row in rows if row.values["split"] == "val"]
    for axis in ("valence", "arousal"):
        assert np.std([row[axis] for row in held_out]) > 0.35  # 0.58 where even


def test_synthetic_data_is_prepared_and_says_so(tmp_path: Path) -> None:
    report = prepare_midi([], tmp_path / "out", synthetic=6, workers=1, val_share=0.2)
    reader = ShardReader(tmp_path / "out")
    assert (report.sources, len(reader)) == (6, 6)
    assert reader.dataset["synthetic"] is True
    assert reader.dataset["labels"] == {"given": 6}
    assert reader.dataset["with_chords"] == reader.dataset["with_key"] == 6
    assert len(reader.split("val")) == 1
    rows = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert np.allclose(reader.pieces.valence, [row.values["valence"] for row in rows], atol=1e-3)
    again = prepare_midi([], tmp_path / "out", synthetic=8, workers=1, val_share=0.2)
    assert (again.prepared, again.reused) == (2, 6)


def test_what_a_larger_run_left_goes_but_no_file_of_others(tmp_path: Path) -> None:
    write_synthetic(tmp_path, 5, seed=3, val_share=0.2)
    (tmp_path / "mine.mid").write_bytes(b"mine")
    write_synthetic(tmp_path, 2, seed=4, val_share=0.2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00000.mid", "00001.mid", "manifest.jsonl", "mine.mid"]
    (tmp_path / "00002.mid").write_bytes(b"mine too")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KmidiError, match=r"00002\.mid was not written by"):
        write_synthetic(tmp_path, 3, seed=4, val_share=0.2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_of_others_is_left_alone(tmp_path: Path) -> None:
    theirs = b'{"path": "x.mid", "split": "train"}\n'
    (tmp_path / "manifest.jsonl").write_bytes(theirs)
    with pytest.raises(KmidiError, match=r"manifest\.jsonl was not written by"):
        write_synthetic(tmp_path, 3, seed=4, val_share=0.2)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [theirs]


def test_stopping_while_writing_and_going_on(tmp_path: Path) -> None:
    done: list[int] = []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_synthetic(whole, 6, seed=3, val_share=0.2)
    write_synthetic(
        parts, 6, seed=3, val_share=0.2, on_progress=done.append, stop=lambda: len(done) == 4
    )
    written = {path: path.stat().st_mtime_ns for path in parts.glob("*.mid")}
    assert len(written) == sum(done) == 4
    done.clear()
    write_synthetic(parts, 6, seed=3, val_share=0.2, on_progress=done.append)
    assert sum(done) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    contents = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (whole, parts)]
    assert contents[0] == contents[1]
    # stopped before anything is composed: nothing is there
    write_synthetic(tmp_path / "none", 6, seed=3, val_share=0.2, stop=lambda: True)
    assert not (tmp_path / "none").exists()


def test_less_than_one_piece_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="at least 1"):
        write_synthetic(tmp_path, 0, seed=0, val_share=0.1)
