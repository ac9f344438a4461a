"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import math
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_tracker import no_room_beyond

from kmidi_mlx.audio.files import write_wav

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.audio.metadata import Encoding, parse_plugin_metadata

from kmidi_mlx.runs.tracker_tensorboard import FOLDER, make_tracker


def read(folder: Path) -> Any:
    reader = EventAccumulator(str(folder / FOLDER), size_guidance={"images": 0, "audio": 0})
    return reader.Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_numbers_come_back_under_their_groups(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path, "midi-generator")
    tracker.start({"model": {"hidden_dim": 64}}, 0)
    tracker.log(5, {"loss": 2.5, "learning_rate": 0.125, "skipped_steps": 0})
    tracker.log(10, {"loss": 2.0, "learning_rate": 0.0625, "skipped_steps": 1})
    tracker.log(10, {"val_loss": 2.25, "val_chamfer": 0.5})
    tracker.finish("finished")
    assert scalars(tmp_path, "train/loss") == [(5, 2.5), (10, 2.0)]
    assert scalars(tmp_path, "train/learning_rate") == [(5, 0.125), (10, 0.0625)]
    assert scalars(tmp_path, "train/skipped_steps") == [(5, 0.0), (10, 1.0)]
    assert scalars(tmp_path, "val/loss") == [(10, 2.25)]
    assert scalars(tmp_path, "val/chamfer") == [(10, 0.5)]
    text = read(tmp_path).Tensors("run")[0].tensor_proto.string_val[0].decode()
    assert '"hidden_dim": 64' in text
    assert read(tmp_path).Tensors("end")[0].tensor_proto.string_val == [b"finished"]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    first = make_tracker(tmp_path, "p")
    first.start({}, 0)
    for step in range(1, 10):
        first.log(step, {"loss": float(step)})
    # killed after step 9, the last save was at 6
    second = make_tracker(tmp_path, "p")
    second.start({}, 6)
    for step in range(7, 13):
        second.log(step, {"loss": float(step)})
    assert scalars(tmp_path, "train/loss") == [(step, float(step)) for step in range(1, 13)]
    third = make_tracker(tmp_path, "p")
    third.start({}, 0)
    third.log(1, {"loss": -1.0})
    assert scalars(tmp_path, "train/loss") == [(1, -1.0)]  # begun anew before its first save


def test_pictures_and_sounds_come_back(tmp_path: Path) -> None:
    picture, sound = tmp_path / "a.png", tmp_path / "a.wav"
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(picture)
    write_wav(sound, np.zeros(4800, np.float32), 24_000)
    tracker = make_tracker(tmp_path, "p")
    tracker.start({}, 0)
    for step in (10, 20):
        tracker.add_samples(step, [picture, sound, tmp_path / "a.mid"])
    reader = read(tmp_path)
    images = reader.Images("samples/picture")
    assert [(image.step, image.width, image.height) for image in images] == [
        (10, 30, 20), (20, 30, 20)
    ]  # fmt: skip
    with Image.open(BytesIO(images[0].encoded_image_string)) as image:
        assert np.array(image).mean() == 99
    sounds = reader.Tensors("samples/sound")
    assert [event.step for event in sounds] == [10, 20]
    assert list(sounds[1].tensor_proto.string_val) == [sound.read_bytes(), b""]
    about = reader.SummaryMetadata("samples/sound").plugin_data
    assert about.plugin_name == "audio"
    assert parse_plugin_metadata(about.content).encoding == Encoding.Value("WAV")


def test_what_is_no_number_is_kept_as_it_is(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path, "p")
    tracker.start({}, 0)
    tracker.log(1, {"loss": math.nan, "note": "text", "nothing": None})
    assert math.isnan(scalars(tmp_path, "train/loss")[0][1])
    assert read(tmp_path).Tags()["scalars"] == ["train/loss"]


def test_a_full_disk_leaves_whole_events_alone(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path, "p")
    tracker.start({}, 0)
    tracker.log(1, {"loss": 1.0})
    (file,) = (tmp_path / FOLDER).iterdir()
    with (
        no_room_beyond(file.stat().st_size + 10),
        pytest.raises(OSError, match=r"No space|too large"),
    ):
        tracker.log(2, {"loss": 2.0})
    tracker.log(3, {"loss": 3.0})
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (3, 3.0)]
    size = file.stat().st_size
    records = 0
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        data = data[8 + 4 + length + 4 :]
        records += 1
    assert records == 5  # version, start, configuration, two reports
    assert size == file.stat().st_size
