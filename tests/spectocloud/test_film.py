from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmidi_mlx.emotion import from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import Song, clouds_at
from kmidi_mlx.spectocloud.film import (
    check_film,
    draw_film,
    draw_moment,
    most_pictures,
    width_of_panels,
    write_film,
)

SIZE = (64, 36)


@pytest.fixture(scope="module")
def pictures(chords: Callable[..., Notes]) -> list[np.ndarray]:
    frames = Song(notes=chords(48, 60, 64), emotion=from_label("happy"))[60:96]
    return list(draw_film(frames, SIZE, 10, 200))


def test_one_picture_for_each_tenth_of_a_second(pictures: list[np.ndarray]) -> None:
    assert len(pictures) == 6
    assert {picture.shape for picture in pictures} == {(36, 64, 3)}
    assert any((a != b).any() for a, b in itertools.pairwise(pictures))


def test_a_stretch_is_the_same_part_of_the_whole_film(chords: Callable[..., Notes]) -> None:
    song = Song(notes=chords(48, 60, 64, seconds=2.0), emotion=from_label("tense"))
    whole = list(draw_film(song, SIZE, 10, 50))
    part = list(draw_film(song, SIZE, 10, 50, first=66, last=90))
    assert len(part) == 4
    for ours, theirs in zip(part, whole[11:15], strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2
    assert np.abs(part[0].astype(int) - whole[0]).max() > 20


def test_panels_stand_side_by_side(chords: Callable[..., Notes]) -> None:
    song = Song(notes=chords(48, 60, 64, seconds=1.0), emotion=from_label("calm"))
    (state,) = clouds_at(song, [40], 50)
    told = []

    def panels(frame, its_state):  # type: ignore[no-untyped-def]
        told.append((frame.progress, its_state.emotion))
        return [its_state.cloud, its_state.cloud[:20]]

    picture = draw_moment(song, 40, SIZE, 50, panels)
    alone = draw_moment(song, 40, SIZE, 50)
    assert told == [(song[40].progress, state.emotion)]
    assert picture.shape == (36, width_of_panels(2, 64), 3)
    assert (picture[:, :64] == alone).all()
    assert (picture[:, 64:-64] == 0).all()
    assert (picture[:, -64:] != alone).any()
    assert width_of_panels(1, 64) == 64


def test_what_pillow_holds_in_memory_is_limited() -> None:
    gif, webp = (most_pictures(Path(f"film{suffix}"), (960, 540)) for suffix in (".gif", ".webp"))
    assert gif is not None
    assert webp is not None
    assert gif == 4 * webp + 2 > 4000
    assert most_pictures(Path("film.mp4"), (960, 540)) is None


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_films_are_read_back(pictures: list[np.ndarray], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    write_film(path, pictures, 10)
    with Image.open(path) as image:
        assert image.size == SIZE
        assert getattr(image, "n_frames", 1) == 6
        image.seek(3)
        shown = np.asarray(image.convert("RGB")).astype(float)
    assert np.abs(shown - pictures[3]).mean() < 6.0
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "rate"), [(".gif", 30), (".gif", 12), (".webp", 30)])
def test_films_are_as_long_as_their_pictures(tmp_path: Path, suffix: str, rate: int) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(rate))
    write_film(tmp_path / f"film{suffix}", noise, rate)
    with Image.open(tmp_path / f"film{suffix}") as image:
        lasting = 0.0
        for index in range(rate):
            image.seek(index)
            image.load()
            lasting += image.info["duration"]
    assert lasting == pytest.approx(1000.0, abs=rate / 2)


def pretend_ffmpeg(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program called ffmpeg on the search path that runs `code`."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_mp4_gets_the_raw_pictures_and_the_sound(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    code = (
        "data = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'wb').write(repr(sys.argv).encode() + b'\\n' + data)"
    )
    pretend_ffmpeg(tools, code, monkeypatch)
    sound = tmp_path / "song.wav"
    sound.write_bytes(b"RIFF")
    write_film(tmp_path / "film.mp4", pictures, 10, sound, 12.5)
    command, _, raw = (tmp_path / "film.mp4").read_bytes().partition(b"\n")
    assert raw == b"".join(picture.tobytes() for picture in pictures)
    for part in (b"'64x36'", b"'-r', '10'", str(sound).encode(), b"yuv420p", b"'-ss', '12.5"):
        assert part in command


@pytest.mark.parametrize("reading", ["sys.stdin.buffer.read()", "pass"])
def test_ffmpeg_that_fails_is_told_and_leaves_nothing(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    pretend_ffmpeg(tools, f"{reading}\nsys.exit('no such encoder')", monkeypatch)
    # many more pictures than a pipe holds
    with pytest.raises(KmidiError, match="no such encoder"):
        write_film(tmp_path / "film.mp4", pictures * 50, 10)
    assert [other.name for other in tmp_path.iterdir()] == ["tools"]


def test_mp4_without_ffmpeg(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KmidiError, match="ffmpeg"):
        write_film(tmp_path / "film.mp4", pictures, 10)
    with pytest.raises(KmidiError, match="ffmpeg"):
        check_film(tmp_path / "film.mp4")


def test_wrong_films_are_refused(pictures: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"\.gif"):
        write_film(tmp_path / "film.avi", pictures)
    with pytest.raises(KmidiError, match="no pictures"):
        write_film(tmp_path / "film.gif", [])
    with pytest.raises(KmidiError, match="cannot have sound"):
        write_film(tmp_path / "film.gif", pictures, sound=tmp_path / "song.wav")
    frames = Song(notes=Notes.empty(), emotion=from_label("sad"))[:1]
    with pytest.raises(KmidiError, match="divide"):
        next(draw_film(frames, SIZE, 25))
