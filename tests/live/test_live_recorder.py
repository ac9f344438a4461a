"""Recording: in step, nothing lost, nobody waits for the disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_band import BLOCK, Band, Parts, cloud, recording

from kmidi_mlx.audio.sampler import Sampler
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundEngine, SoundFan
from kmidi_mlx.live.take import Take
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    yield from recording(tmp_path)


def rendered(notes: Notes, count: int) -> np.ndarray:
    """What the piano makes of notes when it has all the time in the world, left side."""
    sampler = Sampler(sample_rate=SAMPLE_RATE)
    for pitch, velocity, onset, offset in zip(
        notes.pitch, notes.velocity, notes.onset_seconds, notes.offset_seconds, strict=True
    ):
        sampler.note_on(int(pitch), int(velocity), round(onset * SAMPLE_RATE))
        sampler.note_off(int(pitch), round(offset * SAMPLE_RATE))
    return np.asarray(sampler.render_block(count)[:, 0], float)


def lag_seconds(wanted: np.ndarray, heard: np.ndarray, place: int, reach: int = 2205) -> float:
    """By how much a note is heard later than wanted, to 50 ms, by where both are most alike."""
    note = wanted[place : place + 4410]
    part = heard[place - reach : place + 4410 + reach]
    return float(np.argmax(np.correlate(part, note, "valid")) - reach) / SAMPLE_RATE


def test_sound_music_and_clouds_are_in_step(tmp_path: Path) -> None:
    """The piano plays; where the sound begins, the MIDI file has a note and the cloud was seen."""
    fan, clouds, ring, clock = SoundFan(), CloudSlot(), NoteRing(), SongClock()
    recorder = Recorder(tmp_path, fan, clouds)
    engine, player = SoundEngine(fan), Player(ring, clock)
    engine.start()
    player.start()
    player.add(engine)
    player.add(recorder.sink)
    steps = [40, 70, 100, 130, 160]
    for number, step in enumerate(steps):
        ring.push(PlannedEvent(step, 60 + number, 110, number))
        ring.push(PlannedEvent(step + 15, 60 + number, 0, number))
    clock.start(time.monotonic() + 0.1)
    assert recorder.start("played") == {"recording": "played"}
    for number, step in enumerate(steps):
        time.sleep(max(0.0, clock.time_of(step) - time.monotonic()))
        clouds.put(cloud(number, clock.time_of(step)))
    time.sleep(0.3)
    assert recorder.name == "played"
    recorder.stop()
    player.stop()
    engine.stop()
    with Take.open(tmp_path / "played") as take:
        onsets = take.notes.onset_seconds
        assert len(onsets) == len(steps)
        np.testing.assert_allclose(np.diff(onsets), 0.3, atol=0.002)
        np.testing.assert_allclose(take.notes.offset_seconds - onsets, 0.15, atol=0.002)
        np.testing.assert_allclose(take.clouds.seconds, onsets, atol=0.002)
        heard = take.sound()[:, 0].astype(float)
        wanted = rendered(take.notes, len(heard))
        lags = [lag_seconds(wanted, heard, round(onset * SAMPLE_RATE)) for onset in onsets]
        # a machine that is busy may play a note late
        assert np.median(np.abs(lags)) < 0.03
        assert take.finished
        assert take.seconds == pytest.approx(len(heard) / SAMPLE_RATE, abs=1e-4)


def test_every_sample_and_cloud_is_there(parts: Parts, tmp_path: Path) -> None:
    recorder, _, _ = parts
    with Band(*parts) as band:
        time.sleep(0.2)
        recorder.start("all", {"seed": 7})
        time.sleep(0.8)
        result = recorder.stop()
    assert result["recording"] == ""
    assert result["files"] == [
        "all/take.json", "all/music.mid", "all/sound.wav", "all/clouds.kmc",
    ]  # fmt: skip
    made_files = {f"all/{path.name}" for path in (tmp_path / "takes" / "all").iterdir()}
    assert made_files == set(result["files"])
    with Take.open(tmp_path / "takes" / "all") as take:
        assert take.about["about"] == {"seed": 7}
        assert take.about["lost"] == {"sound_blocks": 0, "clouds": 0}
        assert take.seconds == pytest.approx(0.6, abs=0.1)
        sound = take.sound()
        frames = list(take.clouds)
        # where the take begins in what was made
        numbers = [frame.sequence for frame in frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert 25 <= len(numbers) <= 40
        begin = band.times[numbers[5]] - take.clouds.seconds[5]
        made = np.zeros_like(sound)
        for heard, samples in band.blocks:
            place = round((heard - begin) * SAMPLE_RATE)
            first, last = max(0, -place), min(BLOCK, len(made) - place)
            if first < last:
                made[place + first : place + last] = samples[first:last]
        assert sound.any(axis=1).mean() > 0.99
        # to a sample, which rounding may move
        shift = min((-1, 0, 1), key=lambda k: int((np.roll(made, k, 0) != sound).sum()))
        np.testing.assert_array_equal(np.roll(made, shift, 0)[2:-2], sound[2:-2])


def test_notes_held_at_both_ends_are_cut(parts: Parts, tmp_path: Path) -> None:
    recorder, _, _ = parts
    sink = recorder.sink
    sink.note_on(50, 90, time.monotonic())
    sink.note_on(51, 90, time.monotonic())
    sink.silence()
    sink.note_on(60, 100, time.monotonic())
    sink.note_on(61, 100, time.monotonic())
    recorder.start("held")
    sink.note_off(61, time.monotonic())  # before the take has quite begun
    time.sleep(0.5)
    sink.note_on(64, 80, time.monotonic())
    time.sleep(0.1)
    recorder.stop()
    sink.note_off(60, time.monotonic())
    notes = read_midi(tmp_path / "takes" / "held" / "music.mid")
    assert notes.pitch.tolist() == [60, 64]
    assert notes.onset_seconds[0] == 0.0
    seconds = json.loads((tmp_path / "takes" / "held" / "take.json").read_text())["seconds"]
    np.testing.assert_allclose(notes.offset_seconds, seconds, atol=0.001)


@pytest.mark.parametrize(
    "name",
    ["../up", "..", ".", ".hidden", "a/b", "a\\b", "a\0b", "-flag", "x" * 65, "täke", "a b", "a\n"],
)
def test_names_cannot_leave_the_folder(parts: Parts, tmp_path: Path, name: str) -> None:
    with pytest.raises(KmidiError, match="a take cannot be called"):
        parts[0].start(name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_touched(parts: Parts, tmp_path: Path) -> None:
    recorder, _, _ = parts
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    takes = tmp_path / "takes"
    takes.mkdir()
    (takes / "link").symlink_to(elsewhere)
    (takes / "dangling").symlink_to(tmp_path / "nowhere")
    (takes / "file").write_text("mine")
    (takes / "empty").mkdir()
    for name in ("link", "dangling", "file", "empty"):
        with pytest.raises(KmidiError, match=f"there is a take called {name} already"):
            recorder.start(name)
    assert list(elsewhere.iterdir()) == []
    assert recorder.name == ""


def test_one_take_at_a_time_and_names_by_the_clock(
    parts: Parts,
) -> None:
    recorder, _, _ = parts
    with pytest.raises(KmidiError, match="nothing is being recorded"):
        recorder.stop()
    first = recorder.start()["recording"]
    assert first.startswith("take-20")
    with pytest.raises(KmidiError, match=f"{first} is being recorded already"):
        recorder.start("other")
    recorder.stop()
    second = recorder.start()["recording"]
    recorder.stop()
    assert second != first


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "takes", None, CloudSlot())
    with pytest.raises(KmidiError, match="Not a directory"):
        recorder.start()
    assert recorder.name == ""


def test_without_sound_and_clouds_there_is_still_music(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None, CloudSlot())
    recorder.start("silent")
    files = recorder.stop()["files"]  # at once: it has hardly begun
    assert files == ["silent/take.json", "silent/music.mid", "silent/clouds.kmc"]
    with Take.open(tmp_path / "silent") as take:
        assert (take.seconds, len(take.clouds), len(take.notes)) == (0.0, 0, 0)
