"""Small music that the tests of this folder make for themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes


def random_notes(seed: int, count: int = 60) -> Notes:
    """Notes with changing velocities, overlaps of different pitches, and a few rests."""
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.0, 0.11, 0.2, 0.37, 1.6], count, p=[0.3, 0.3, 0.2, 0.15, 0.05]))
    length = rng.uniform(0.05, 1.2, count)
    return Notes.build(
        rng.integers(40, 90, count), rng.integers(20, 120, count), onset, onset + length
    )


@pytest.fixture
def music(tmp_path: Path) -> Callable[..., Path]:
    """Write MIDI files below a folder and return it: `music("a/x.mid", seed=1, count=60)`."""

    def write(name: str, seed: int, count: int = 60) -> Path:
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_midi(random_notes(seed, count), path)
        return path

    return write


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """A data set of 8 train and 3 val songs, some with versions, chords, keys and ratings."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = []
    for song in range(11):
        for version in range(1 + song % 3):
            name = f"{song}-{version}.mid"
            write_midi(random_notes(10 * song + version, 60 + 40 * song), folder / name)
            row = {"path": name, "song": song, "split": "val" if song % 4 == 3 else "train"}
            if song % 2 == 0 or song == 3:
                names = ["C:maj", "A:min7", "N", "F:maj", "G:7"]
                row["chords"] = [
                    [0.5 + 1.37 * k, 0.5 + 1.37 * k + (1.37 if k % 7 else 1.0), names[k % 5]]
                    for k in range(60)
                ]
                row["key"] = "C:maj"
                row["key_segments"] = [[0, 20, "C:maj"], [20, 45.5, "A:min"]]
            if song == 5:
                row |= {"valence": 0.3, "arousal": -0.2}
            rows.append(row)
    write_manifest(folder / "manifest.jsonl", rows)
    prepare_midi([folder / "manifest.jsonl"], folder / "out", workers=1, licence="test")
    return ShardReader(folder / "out")
