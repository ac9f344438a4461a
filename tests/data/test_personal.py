"""A person's own folder: divided in proportion, prepared once, described in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.personal import (
    describe_clouds,
    describe_music,
    is_prepared,
    prepare_own,
)
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes


def write_tunes(folder: Path, count: int, notes: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        onset = np.cumsum(rng.uniform(0.1, 0.4, notes))
        tune = Notes.build(
            rng.integers(50, 80, notes), rng.integers(30, 100, notes), onset, onset + 0.2
        )
        write_midi(tune, folder / f"tune {number}.mid")
    return folder


def sides(folder: Path) -> dict[str, int]:
    reader = ShardReader(folder)
    return {side: len(reader.split(side)) for side in ("train", "val", "test")}


@settings(max_examples=12)
@given(st.integers(2, 40), st.floats(0.0, 1.0), st.integers(0, 5))
def test_the_sides_are_in_proportion(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float, seed: int
) -> None:
    folder = write_tunes(tmp_path_factory.mktemp("own") / "tunes", count, notes=8)
    out = folder.parent / "data"
    assert prepare_own("midi_generator", folder, out, val_share=share, seed=seed)
    held_out = min(count - 1, max(1, round(share * count)))
    assert sides(out) == {"train": count - held_out, "val": held_out, "test": 0}


def test_three_files_are_enough_and_the_same_ones_are_held_out_again(tmp_path: Path) -> None:
    folder = write_tunes(tmp_path / "tunes", 3)
    assert not is_prepared(folder)
    assert prepare_own("midi_generator", folder, tmp_path / "data")
    assert is_prepared(tmp_path / "data")
    assert sides(tmp_path / "data") == {"train": 2, "val": 1, "test": 0}
    before = (tmp_path / "data" / "index.npz").read_bytes()
    assert prepare_own("midi_generator", folder, tmp_path / "data")
    assert (tmp_path / "data" / "index.npz").read_bytes() == before
    text = describe_music(ShardReader(tmp_path / "data"))
    assert text.startswith("3 pieces, ")
    assert "120 notes" in text
    assert text.endswith("2 to learn from, 1 held out")


def test_versions_of_a_song_stay_on_one_side_and_doubles_are_named(tmp_path: Path) -> None:
    folder = write_tunes(tmp_path / "tunes", 4)
    (folder / "tune 0-v2.mid").write_bytes((folder / "tune 1.mid").read_bytes())
    (folder / "tune 3.mid").write_bytes((folder / "tune 2.mid").read_bytes())
    prepare_own("midi_generator", folder, tmp_path / "data", val_share=0.5)
    reader = ShardReader(tmp_path / "data")
    assert describe_music(reader).endswith("; 2 exact doubles left out")
    side = {}
    for name, split in zip(reader.pieces.song.tolist(), reader.pieces.split.tolist(), strict=True):
        assert side.setdefault(name, split) == split


def test_a_manifest_has_the_last_word(tmp_path: Path) -> None:
    folder = write_tunes(tmp_path / "tunes", 4)
    manifest = folder / "list.jsonl"
    manifest.write_text(
        "".join(
            json.dumps({"path": f"tune {number}.mid", "split": "val" if number else "train"}) + "\n"
            for number in range(4)
        )
    )
    prepare_own("midi_generator", manifest, tmp_path / "data")
    assert sides(tmp_path / "data") == {"train": 1, "val": 3, "test": 0}


def test_files_that_cannot_be_used_are_on_no_side(tmp_path: Path) -> None:
    folder = write_tunes(tmp_path / "tunes", 6)
    for number in range(6):
        if number % 2:
            (folder / f"tune {number}.mid").write_bytes(b"no music")
    assert prepare_own("midi_generator", folder, tmp_path / "data")
    assert sides(tmp_path / "data") == {"train": 2, "val": 1, "test": 0}
    text = describe_music(ShardReader(tmp_path / "data"))
    assert text.endswith(f"; 3 files could not be used, {tmp_path}/data/rejected.jsonl says why")
    for number in range(4):
        (folder / f"tune {number}.mid").write_bytes(b"no music")
    with pytest.raises(KmidiError, match="has one song that can be used"):
        prepare_own("midi_generator", folder, tmp_path / "data")


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_is_said(tmp_path: Path, count: int) -> None:
    folder = write_tunes(tmp_path / "tunes", count)
    sentence = r"has one song that can be used; fine-tuning needs two|has no \.mid"
    with pytest.raises(KmidiError, match=sentence):
        prepare_own("midi_generator", folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_music_becomes_clouds(tmp_path: Path) -> None:
    folder = write_tunes(tmp_path / "tunes", 2)
    assert prepare_own("spectocloud", folder, tmp_path / "clouds")
    reader = CloudReader(tmp_path / "clouds")
    assert len(reader.split("train"))
    assert len(reader.split("val"))
    text = describe_clouds(reader)
    assert text.startswith("2 songs, ")
    assert "of other songs held out" in text
