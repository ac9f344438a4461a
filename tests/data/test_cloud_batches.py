from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx.data.cloud_batches import CloudBatch, CloudBatches
from kmidi_mlx.data.cloud_sampling import Pairs
from kmidi_mlx.data.cloud_shards import CloudReader, open_shard, write_dataset, write_shard
from kmidi_mlx.data.prefetch import Prefetcher
from kmidi_mlx.emotion import Emotion, encode
from kmidi_mlx.errors import KmidiError

# pairs of each song; songs 2 and 5 are held out
COUNTS = (6, 4, 5, 3, 7, 6)
SHARDS = ((0, 1, 2), (3, 4, 5))


def song_pairs(song: int) -> Pairs:
    rng = np.random.default_rng(song)
    pairs = Pairs.empty(COUNTS[song])
    pairs.clouds[:] = rng.uniform(0.0, 1.0, pairs.clouds.shape)
    # the first number says which sample it is
    pairs.clouds[:, :, :, 0] = song / 10.0
    pairs.clouds[:, :, :, 1] = np.arange(COUNTS[song])[:, None, None] / 20.0
    pairs.clouds[:, 1, :, 2] = 0.5
    pairs.clouds[:, 0, :, 2] = 0.0
    pairs.clouds[:, :, :, 9] = np.arange(1200) / 1200.0
    pairs.mel[:] = rng.integers(0, 256, pairs.mel.shape)
    pairs.features[:] = rng.uniform(-1.0, 1.0, pairs.features.shape)
    pairs.emotion[:] = rng.uniform(0.0, 1.0, pairs.emotion.shape)
    pairs.shift[:] = rng.integers(0, 3, COUNTS[song])
    return pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clouds")
    for number, songs in enumerate(SHARDS):
        names = [(f"song-{song}", COUNTS[song]) for song in songs]
        write_shard(out, number, names, (song_pairs(song) for song in songs))
    columns = {
        "shard": np.array([0, 0, 0, 1, 1, 1]),
        "row": np.array([0, 6, 10, 0, 3, 10]),
        "pairs": np.array(COUNTS),
        "split": np.array([0, 0, 1, 0, 0, 1]),
        "song": np.arange(6),
        "group": np.arange(6),
    }
    write_dataset(out, columns, {"synthetic": True})
    return out


@pytest.fixture(scope="module")
def reader(folder: Path) -> CloudReader:
    return CloudReader(folder)


def which(batch: CloudBatch) -> list[tuple[int, int]]:
    """Song and pair of every pair of rows; checks that both rows are of it."""
    first = batch.clouds[:, 0].astype(np.float64)
    rows = [(round(10 * row[0]), round(20 * row[1]), round(2 * row[2])) for row in first]
    assert [row[2] for row in rows] == [0, 1] * (len(rows) // 2)
    assert [row[:2] for row in rows[::2]] == [row[:2] for row in rows[1::2]]
    return [row[:2] for row in rows[::2]]


def same(a: CloudBatch, b: CloudBatch) -> bool:
    return all(np.array_equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_the_reader_gives_what_was_written(reader: CloudReader) -> None:
    assert len(reader) == sum(COUNTS)
    assert reader.song.tolist() == np.repeat(np.arange(6), COUNTS).tolist()
    indices = [30, 0, 9, 9, 12, 15]
    found = reader.pairs(indices)
    songs = [song_pairs(song) for song in range(6)]
    for row, index in enumerate(indices):
        song = int(reader.song[index])
        mine = index - sum(COUNTS[:song])
        expected = songs[song]
        np.testing.assert_array_equal(found.clouds[row], expected.clouds[mine])
        np.testing.assert_array_equal(found.features[row], expected.features[mine])
        np.testing.assert_array_equal(found.emotion[row], expected.emotion[mine])
        shift = int(expected.shift[mine])
        for frame, start in enumerate((0, shift)):
            window = expected.mel[mine, :, start : start + 64] / 255.0
            np.testing.assert_allclose(found.windows[row, frame], window, atol=1e-7)
    assert {array.dtype for array in vars(found).values()} == {np.dtype(np.float32)}
    with pytest.raises(IndexError):
        reader.pairs([31])
    assert len(reader.pairs([]).clouds) == 0


def test_batches_have_the_promised_shapes(reader: CloudReader) -> None:
    batch = CloudBatches(reader, "train", 8, 0, 300).batch(0)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in vars(batch).items()}
    assert shapes == {
        "windows": ((8, 128, 64), "float32"),
        "features": ((8, 32), "float32"),
        "emotion": ((8, 64), "float32"),
        "clouds": ((8, 300, 10), "float32"),
        "point_indices": ((300,), "int32"),
        "weights": ((8,), "float32"),
    }
    np.testing.assert_allclose(batch.clouds[:, :, 9], np.tile(batch.point_indices / 1200, (8, 1)),
                               atol=1e-3)  # fmt: skip
    v, a, i = (float(x) for x in batch.emotion[3, :3])
    np.testing.assert_allclose(batch.emotion[3], encode(Emotion(v, a, i)), atol=1e-6)


def test_an_epoch_of_training_sees_every_pair_once(reader: CloudReader) -> None:
    batches = CloudBatches(reader, "train", 8, 5, 1200)
    assert batches.samples_per_epoch == 40
    assert (batches.steps_per_epoch(), batches.steps_per_epoch(2)) == (5, 3)
    epochs = [[pair for step in range(5) for pair in which(batches.batch(5 * epoch + step))]
              for epoch in range(2)]  # fmt: skip
    everything = {(song, pair) for song in (0, 1, 3, 4) for pair in range(COUNTS[song])}
    assert all(len(epoch) == 20 and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert (batches.batch(3).weights == 1.0).all()


def test_batches_are_pure_functions_of_seed_and_step(reader: CloudReader) -> None:
    batches = CloudBatches(reader, "train", 6, 1, 200)
    wanted = [batches.batch(step) for step in range(9)]  # across an epoch's end within a batch
    fresh = CloudBatches(reader, "train", 6, 1, 200)
    assert same(fresh.batch(8), wanted[8])
    assert same(fresh.batch(2), wanted[2])
    with Prefetcher(fresh.batch, 3, 2) as ahead:
        assert all(same(next(ahead), wanted[step]) for step in range(3, 9))
    other = CloudBatches(reader, "train", 6, 2, 200)
    assert not same(other.batch(0), wanted[0])
    points = [batch.point_indices.tolist() for batch in wanted]
    assert points[0] != points[1]
    assert all(p == sorted(set(p)) and p[0] >= 0 and p[-1] < 1200 for p in points)


def test_held_out_batches_are_fixed_and_spread_over_songs(reader: CloudReader) -> None:
    batches = CloudBatches(reader, "val", 6, 0, 100)
    assert batches.steps_per_epoch() == 4
    assert {song for song, _ in which(batches.batch(0))} == {2, 5}
    seen = []
    for step in range(4):
        batch = batches.batch(step)
        assert batch.point_indices.tolist() == list(range(100))
        assert (batch.weights[::2] == batch.weights[1::2]).all()
        seen += [p for p, w in zip(which(batch), batch.weights[::2], strict=True) if w]
    assert sorted(seen) == [(2, n) for n in range(5)] + [(5, n) for n in range(6)]
    assert batches.batch(3).weights.tolist() == [1, 1, 1, 1, 0, 0]
    assert same(batches.batch(1), batches.batch(5))
    assert same(CloudBatches(reader, "val", 6, 9, 100).batch(1), batches.batch(1))
    # a side smaller than a batch
    big = CloudBatches(reader, "val", 60, 0, 10).batch(0)
    assert big.weights.sum() == 22
    assert len(which(big)) == 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("test", 6, 0, 100), "no samples in 'test'"),
        (("train", 5, 0, 100), "batch_size is 5"),
        (("train", 0, 0, 100), "batch_size is 0"),
        (("train", 6, 0, 0), "0 points are wanted"),
        (("train", 6, 0, 1201), "1201 points are wanted"),
    ],
)
def test_wrong_options_are_refused(
    reader: CloudReader, options: tuple[str, int, int, int], says: str
) -> None:
    with pytest.raises(KmidiError, match=says):
        CloudBatches(reader, *options)


def test_damaged_folders_are_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, content: bytes | None) -> Path:
        copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        return copy

    clouds = (folder / "clouds-00001.npy").read_bytes()
    description = json.loads((folder / "dataset.json").read_text())
    cases = {
        ("dataset.json", None): "no dataset.json",
        ("dataset.json", b"{"): "dataset.json is damaged",
        ("dataset.json", b'{"format": 1, "pieces": 3}'): "not a data set of clouds",
        ("dataset.json", json.dumps(description | {"format": 9}).encode()): "has format 9",
        ("dataset.json", json.dumps(description | {"pairs": 5}).encode()): "belong together",
        ("index.npz", None): "index.npz is missing",
        ("clouds-00001.npy", None): "clouds-00001.npy is missing",
        ("clouds-00001.npy", clouds[:5000]): "clouds-00001.npy is damaged or cut off",
        ("clouds-00001.npy", (folder / "clouds-00000.npy").read_bytes()): "what belongs there",
        ("conditions-00000.npz", b"PK\x03\x04 what"): "conditions-00000.npz is damaged",
        ("mel-00000.npy", b""): "mel-00000.npy is damaged or cut off",
    }  # fmt: skip
    for (name, content), says in cases.items():
        with pytest.raises(KmidiError, match=says) as caught:
            CloudReader(broken(name, content))
        assert "\n" not in str(caught.value)
    with pytest.raises(KmidiError, match="there is no folder"):
        CloudReader(tmp_path / "nowhere")


def test_a_shard_is_replaced_as_a_whole(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    old = open_shard(copy, 0)

    def fails() -> object:
        yield song_pairs(3)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_shard(copy, 0, [("new", COUNTS[3]), ("more", 1)], fails())  # type: ignore[arg-type]
    assert open_shard(copy, 0).ids == old.ids
    # what is mapped stays readable while its file is replaced
    write_shard(copy, 0, [("new", COUNTS[3])], [song_pairs(3)])
    assert open_shard(copy, 0).ids == ["new"]
    np.testing.assert_array_equal(old.pairs.clouds[:6], song_pairs(0).clouds)
