"""The files of a take: whole at every moment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.take_files import MusicFile, NoteEvent, SoundFile
from kmidi_mlx.music.midi_file import read_midi

RATE = 44_100


def ramp(count: int, first: int = 1) -> np.ndarray:
    return np.repeat(np.arange(first, first + count, dtype=np.int16)[:, None], 2, axis=1)


def read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert rate == RATE
    return np.asarray(samples)


def test_blocks_lie_at_their_time(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    file = SoundFile(path, RATE)
    file.add(4, -150 / RATE, ramp(100, 7000))  # heard before the take
    file.add(5, -50 / RATE, ramp(100))  # and so was its first half
    file.add(6, 50 / RATE, ramp(100, 1000))
    file.add(9, 500 / RATE, ramp(100, 2000))  # two blocks were lost
    file.commit()
    # a clock that was set a little late or early moves nothing
    file.add(10, 620 / RATE, ramp(100, 3000))
    file.add(11, 690 / RATE, ramp(100, 4000))
    file.commit()
    wanted = np.zeros((800, 2), np.int16)
    wanted[:50], wanted[50:150] = ramp(50, 51), ramp(100, 1000)
    wanted[500:600], wanted[600:700], wanted[700:800] = (
        ramp(100, 2000), ramp(100, 3000), ramp(100, 4000),
    )  # fmt: skip
    np.testing.assert_array_equal(read(path), wanted)
    # the sound went on from a later moment: a gap, though nothing was lost
    file.add(12, 2000 / RATE, ramp(100, 5000))
    # and one block lies over what is there
    file.add(13, 1500 / RATE, ramp(1000, 6000))
    file.commit()
    samples = read(path)
    assert len(samples) == 2500
    assert not samples[800:2000].any()
    np.testing.assert_array_equal(samples[2000:2100], ramp(100, 5000))
    np.testing.assert_array_equal(samples[2100:], ramp(400, 6600))
    file.close(2050 / RATE)
    file.release()
    file.release()
    assert len(read(path)) == 2050


def test_the_end_is_filled_up_with_silence(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    file = SoundFile(path, RATE)
    assert len(read(path)) == 0
    file.add(0, 0.0, ramp(100))
    file.close(1.0)
    file.release()
    samples = read(path)
    assert len(samples) == RATE
    assert not samples[100:].any()


def test_seven_hours_are_more_than_32_bits_can_say(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    file = SoundFile(path, RATE)
    seconds = 7 * 3600.0
    file.add(0, 0.0, ramp(100))
    file.add(1, seconds, ramp(100, 500))  # a hole in the file, which takes no room
    file.commit()
    file.release()
    with soundfile.SoundFile(path) as opened:
        assert opened.frames == round(seconds * RATE) + 100
        assert opened.frames * 4 > 2**32
        opened.seek(round(seconds * RATE))
        np.testing.assert_array_equal(opened.read(dtype="int16"), ramp(100, 500))


EVENTS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(60, 63), st.integers(0, 2)), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.dictionaries(st.integers(60, 63), st.integers(1, 127)), st.integers(0, 50))
def test_music_is_what_was_played_cut_to_the_take(
    moves: list[tuple[int, int, int]], held: dict[int, int], more: int
) -> None:
    """Every commit is a sound file, and the last is what a slow reference says."""
    begin, now = 1000.0, 999.8
    sounding = {pitch: (begin, velocity) for pitch, velocity in held.items()}
    wanted = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "music.mid"
        file = MusicFile(path, begin, dict(held))
        latest: dict[int, float] = {}
        for step, pitch, loudness in moves:
            now = round(now + step / 100, 3)
            if latest.get(pitch) == now:
                continue  # a note of no time, which readers give some
            latest[pitch] = now
            file.add([NoteEvent(now, pitch, 40 * loudness)], float("inf"))
            if pitch in sounding:
                wanted.append((*sounding.pop(pitch), now, pitch))
            if loudness:
                sounding[pitch] = (max(begin, now), 40 * loudness)
            if step % 7 == 0:
                file.commit(now)
                read_midi(path)
        end = max(begin, round(now + more / 100, 3))
        wanted += [(onset, velocity, end, pitch) for pitch, (onset, velocity) in sounding.items()]
        file.close(end)
        notes = read_midi(path)
    expected = sorted(
        (round(1e3 * (onset - begin)), pitch, velocity, round(1e3 * (offset - begin)))
        for onset, velocity, offset, pitch in wanted
        if offset > onset
    )
    rows = zip(notes.onset_seconds, notes.pitch, notes.velocity, notes.offset_seconds, strict=True)
    found = sorted(
        (round(1e3 * onset), int(pitch), int(velocity), round(1e3 * offset))
        for onset, pitch, velocity, offset in rows
        if onset < end - begin - 0.0005
    )
    assert found == expected


def test_what_comes_after_the_end_is_left_out(tmp_path: Path) -> None:
    file = MusicFile(tmp_path / "music.mid", 10.0, {60: 90})
    file.add([NoteEvent(10.5, 61, 70), NoteEvent(11.5, 62, 70), NoteEvent(11.6, 60, 0)], 11.0)
    file.close(11.0)
    notes = read_midi(tmp_path / "music.mid")
    assert notes.pitch.tolist() == [60, 61]
    assert notes.onset_seconds.tolist() == [0.0, 0.5]
    assert notes.offset_seconds.tolist() == [1.0, 1.0]


def test_no_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.symlink_to(tmp_path / "elsewhere.wav")
    with pytest.raises(FileExistsError):
        SoundFile(path, RATE)
    assert not (tmp_path / "elsewhere.wav").exists()
