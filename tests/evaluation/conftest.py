"""A tiny model and a small prepared data set for the tests of this folder."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=1,
    num_heads=1,
    ffn_dim=64,
    context_length=32,
    cross_attention_layers=(0,),
)


def random_notes(seed: int, count: int) -> Notes:
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.0, 0.2, 0.37, 1.6], count, p=[0.3, 0.4, 0.25, 0.05]))
    length = rng.uniform(0.05, 1.2, count)
    return Notes.build(
        rng.integers(40, 90, count), rng.integers(20, 120, count), onset, onset + length
    )


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """6 train and 3 val songs with chords and keys; song 2 (val) has a version and a duplicate."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = []
    for song in range(9):
        for version in range(3 if song == 2 else 1):
            name = f"{song}-{version}.mid"
            write_midi(random_notes(10 * song + version % 2, 8 + 5 * song), folder / name)
            rows.append(
                {
                    "path": name,
                    "song": song,
                    "split": "val" if song % 3 == 2 else "train",
                    "chords": [[0.5 * k, 0.5 * k + 0.5, "CFG"[k % 3]] for k in range(40)],
                    "key": "C:maj" if song % 2 else "A:min",
                }
            )
    write_manifest(folder / "manifest.jsonl", rows)
    prepare_midi([folder / "manifest.jsonl"], folder / "out", workers=1, licence="test")
    return ShardReader(folder / "out")


@pytest.fixture
def model() -> EmotionMIDITransformer:
    """Weights at which every part of the model counts."""
    tiny, rng = EmotionMIDITransformer(TINY), np.random.default_rng(0)
    tiny.load_weights(
        [
            (name, mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.3))
            for name, value in tree_flatten(tiny.parameters())
        ]
    )
    return tiny


@pytest.fixture
def uniform() -> EmotionMIDITransformer:
    """A model that gives every event the same chance."""
    flat = EmotionMIDITransformer(TINY)
    flat.embedding.weight = mx.zeros_like(flat.embedding.weight)
    return flat
