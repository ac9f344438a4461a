"""Takes read back, whole or cut short, and films of them."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundFan
from kmidi_mlx.live.take import Take, TakeClouds, draw_take_moment, write_take_film
from kmidi_mlx.live.take_files import CLOUD_FILE_HEADER, CloudFile

BEGIN = 5000.0


def points(value: float, count: int = 3) -> np.ndarray:
    return np.full((count, 10), value, np.float16)


def frames(*rows: tuple[float, float], count: int = 3) -> list[CloudFrame]:
    return [
        CloudFrame(number, BEGIN + seconds, points(value, count), 0.25, -0.5)
        for number, (seconds, value) in enumerate(rows)
    ]


def cloud_file(path: Path, clouds: list[CloudFrame]) -> Path:
    file = CloudFile(path, BEGIN)
    file.add(clouds)
    file.close()
    file.release()
    return path


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_gives_its_whole_clouds(data: st.DataObject) -> None:
    clouds = [
        CloudFrame(number, BEGIN + number / 60, points(number / 8, size), 0.0, 0.0)
        for number, size in enumerate((3, 1, 200, 7))
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole = cloud_file(Path(folder) / "clouds.kmc", clouds).read_bytes()
        length = data.draw(st.integers(0, len(whole)))
        cut = Path(folder) / "cut.kmc"
        cut.write_bytes(whole[:length])
        read = TakeClouds(cut)
        ends = CLOUD_FILE_HEADER.size + np.cumsum([40 + 20 * len(c.points) for c in clouds])
        assert len(read) == int((ends <= length).sum())
        for frame, wanted in zip(read, clouds, strict=False):
            assert frame.sequence == wanted.sequence
            assert frame.time_monotonic == wanted.time_monotonic
            np.testing.assert_array_equal(frame.points, wanted.points)
        read.close()


def test_clouds_by_number_and_by_time(tmp_path: Path) -> None:
    rows = frames((0.0, 0.0), (0.1, 1.0), (1.0, 0.5))
    clouds = TakeClouds(cloud_file(tmp_path / "clouds.kmc", rows))
    np.testing.assert_allclose(clouds.seconds, [0.0, 0.1, 1.0])
    assert clouds[-1].points[0, 0] == 0.5
    assert clouds[0].valence == 0.25
    assert [frame.sequence for frame in clouds[1:]] == [1, 2]
    with pytest.raises(IndexError):
        clouds[3]
    assert clouds.at(-1.0)[0, 0] == 0.0
    assert clouds.at(0.05)[0, 0] == pytest.approx(0.5)
    assert clouds.at(0.1)[0, 0] == 1.0
    assert clouds.at(0.9)[0, 0] == 1.0  # too far apart to be one movement
    assert clouds.at(9.0)[0, 0] == 0.5
    assert clouds.at(0.05).dtype == np.float32
    clouds.close()


def test_between_clouds_of_different_size_the_earlier_holds(tmp_path: Path) -> None:
    rows = [*frames((0.0, 0.25)), CloudFrame(9, BEGIN + 0.1, points(0.75, 5), 0.0, 0.0)]
    clouds = TakeClouds(cloud_file(tmp_path / "clouds.kmc", rows))
    assert clouds.at(0.09).shape == (3, 10)
    assert clouds.at(0.11).shape == (5, 10)
    clouds.close()


def test_what_is_no_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"is no take: it has no take\.json"):
        Take.open(tmp_path)
    assert not Take.is_take(tmp_path)
    about = tmp_path / "take.json"
    for text, problem in (
        ("{", "cannot read"),
        ("[]", "does not describe a take"),
        ('{"format": "other"}', "does not describe a take"),
        ('{"format": "kmidi take", "version": 9}', "a take of version 9"),
        ('{"format": "kmidi take", "version": 1}', "cannot read .*clouds.kmc"),
    ):
        about.write_text(text)
        with pytest.raises(KmidiError, match=problem):
            Take.open(tmp_path)
    (tmp_path / "clouds.kmc").write_bytes(b"x" * 100)
    with pytest.raises(KmidiError, match="no file of clouds of version 1"):
        Take.open(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A take of 0.4 s with thirty clouds a second and a rising tone."""
    takes = tmp_path_factory.mktemp("takes")
    fan, clouds, stopping = SoundFan(), CloudSlot(), threading.Event()
    recorder = Recorder(takes, fan, clouds)

    def play() -> None:
        origin, number = time.monotonic() + 0.05, 0
        generator = np.random.default_rng(1)
        while not stopping.wait(max(0.0, origin - 0.05 + number / 30 - time.monotonic())):
            tone = np.full((1470, 2), 100 * number, np.int16)
            fan.put(tone, origin + number / 30)
            body = generator.uniform(0.0, 1.0, (200, 10)).astype(np.float16)
            clouds.put(CloudFrame(number, time.monotonic(), body, 0.0, 0.0))
            number += 1

    player = threading.Thread(target=play)
    player.start()
    recorder.start("film")
    time.sleep(0.6)
    recorder.stop()
    stopping.set()
    player.join()
    return takes / "film"


def test_a_stretch_of_sound(folder: Path) -> None:
    with Take.open(folder) as take:
        whole = take.sound()
        np.testing.assert_array_equal(take.sound(0.1, 0.2), whole[4410:13230])
        np.testing.assert_array_equal(take.sound(0.3), whole[13230:])
        assert take.sound(9.0).shape == (0, 2)
        assert take.name == "film"
        assert take.about["sample_rate"] == SAMPLE_RATE


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_film_has_as_many_pictures_as_its_time(folder: Path, tmp_path: Path, suffix: str) -> None:
    told = []
    path = tmp_path / f"film{suffix}"
    with Take.open(folder) as take:
        count = write_take_film(take, path, (64, 36), 20, lambda *done: told.append(done))
        assert count == round(20 * take.seconds)
    assert told == [(number, count) for number in range(1, count + 1)]
    with Image.open(path) as film:
        assert film.size == (64, 36)
        assert film.n_frames == count


def test_a_film_with_sound_begins_where_it_is_asked_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that makes MP4 files is a double, which tells what it was given."""
    told = tmp_path / "told.json"
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "size = len(sys.stdin.buffer.read())\n"
        f"pathlib.Path({str(told)!r}).write_text(json.dumps([size, sys.argv[1:]]))\n"
        "pathlib.Path(sys.argv[-1]).write_bytes(b'film')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Take.open(folder) as take:
        write_take_film(
            take, tmp_path / "film.mp4", (64, 36), 60, begin_seconds=0.1, seconds=0.15
        )  # fmt: skip
    size, arguments = json.loads(told.read_text())
    assert size == 9 * 64 * 36 * 3
    assert arguments[arguments.index("-ss") + 1] == "0.100000"
    assert str(folder / "sound.wav") in arguments


def test_a_moment_is_drawn_as_it_was_seen(folder: Path) -> None:
    with Take.open(folder) as take:
        picture = draw_take_moment(take, 0.1, (64, 36))
        assert picture.shape == (36, 64, 3)
        with pytest.raises(KmidiError, match="has no -1 s"):
            draw_take_moment(take, -1.0, (64, 36))


def test_films_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    with Take.open(folder) as take:
        with pytest.raises(KmidiError, match=r"a \.gif film has 1 to 30"):
            write_take_film(take, path, rate=60)
        with pytest.raises(KmidiError, match="film has no 5 s: it lasts 0"):
            write_take_film(take, path, begin_seconds=5.0)
        with pytest.raises(KmidiError, match="has to end in one of"):
            write_take_film(take, tmp_path / "film.avi")
        with pytest.raises(KmidiError, match="holds 1 pictures, and film makes"):
            write_take_film(take, tmp_path / "film.webp", (30_000, 20_000))
    empty = tmp_path / "takes"
    recorder = Recorder(empty, None, CloudSlot())
    recorder.start("dark")
    time.sleep(0.3)
    recorder.stop()
    with Take.open(empty / "dark") as take, pytest.raises(KmidiError, match="no clouds to show"):
        write_take_film(take, path)
    assert not path.exists()
