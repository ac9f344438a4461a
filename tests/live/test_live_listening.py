"""Sound files play over and over while they are decoded; what cannot be heard is one sentence."""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kmidi_mlx.audio.files import resample
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.listening import FileListening, listen_to
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundEngine, SoundFan

BLOCK = 882


def ignore(error: Exception) -> None:
    pytest.fail(f"lost: {error}")


def noise(count: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (count, channels)).astype(np.float32)


def pull(listening: FileListening, count: int) -> np.ndarray:
    """Pull as a sound engine does, but as fast as decoding allows."""
    pieces = []
    for start in range(0, count, BLOCK):
        wanted = min(BLOCK, count - start)
        for _ in range(2000):
            if listening._ahead * SAMPLE_RATE >= wanted:
                break
            time.sleep(0.001)
        pieces.append(listening.pull(wanted))
    assert listening.late_samples == 0
    return np.concatenate(pieces)


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("mono.wav", 44_100, 1), ("stereo.wav", 44_100, 2), ("mono.flac", 48_000, 1),
        ("stereo.wav", 48_000, 2), ("low.wav", 8_000, 2), ("many.wav", 44_100, 6),
        ("high.flac", 96_000, 2),
    ],
)  # fmt: skip
def test_a_file_is_heard_as_it_is_and_again(
    tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(40_000, channels), rate)
    sound, _ = soundfile.read(path, dtype="float32", always_2d=True)
    if channels not in (1, 2):
        sound = sound.mean(axis=1, keepdims=True)
    stereo = np.broadcast_to(sound, (len(sound), 2))
    twice = np.concatenate([stereo, stereo, stereo[: rate // 4]])
    expected = np.stack([resample(twice[:, k].copy(), rate, SAMPLE_RATE) for k in (0, 1)], axis=1)
    listening = listen_to(str(path), ignore)
    try:
        assert listening.name == name
        assert isinstance(listening, FileListening)
        # the end of what is expected hears silence behind it
        found = pull(listening, len(expected) - 1000)
        np.testing.assert_allclose(found, expected[:-1000], atol=2e-6)
    finally:
        listening.close()
        listening.close()


@pytest.mark.parametrize("name", ["song.mp3", "song.ogg"])
def test_compressed_files_play(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    soundfile.write(path, wave, 48_000)
    listening = FileListening(path, ignore)
    try:
        found = pull(listening, 3 * SAMPLE_RATE)[:, 0]
    finally:
        listening.close()
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum.argmax() == pytest.approx(440 * 3, abs=2)


@pytest.mark.parametrize("rate", [44_100, 48_000])
@pytest.mark.parametrize("periods", [1, 100, 1000])
def test_the_end_meets_the_beginning_without_a_gap(tmp_path: Path, rate: int, periods: int) -> None:
    path = tmp_path / "cycles.wav"
    hz, count = 500.0, periods * rate // 500
    count = count if rate == 48_000 else periods * 88  # whole periods of 88 samples
    hz = hz if rate == 48_000 else 44_100 / 88
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(count) / rate)
    soundfile.write(path, wave, rate, subtype="FLOAT")
    listening = FileListening(path, ignore)
    try:
        found = pull(listening, 3 * SAMPLE_RATE)[500:, 0]
    finally:
        listening.close()
    expected = 0.5 * np.sin(2 * np.pi * hz * np.arange(500, 3 * SAMPLE_RATE) / SAMPLE_RATE)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def sparse_hour(path: Path) -> None:
    """A WAV of an hour of stereo that takes no place on the disk, with a click each second."""
    frames, rate = 3600 * 48_000, 48_000
    size = 4 * frames
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt ")
        file.write(struct.pack("<IHHIIHH", 16, 1, 2, rate, 4 * rate, 4, 16))
        file.write(b"data" + struct.pack("<I", size))
        for second in range(20):
            file.seek(44 + 4 * rate * second)
            file.write(struct.pack("<hh", 20_000, 20_000))
        file.truncate(44 + size)


def test_an_hour_opens_at_once_and_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    sparse_hour(path)
    begun = time.perf_counter()
    listening = FileListening(path, ignore)
    opened = time.perf_counter() - begun
    tracemalloc.start()
    try:
        found = pull(listening, 15 * SAMPLE_RATE)
        peak = tracemalloc.get_traced_memory()[1] - found.nbytes
    finally:
        tracemalloc.stop()
        listening.close()
    assert opened < 1.0
    # what is decoded ahead, and the pieces that this test keeps
    assert peak < 16e6
    clicks = np.flatnonzero(found[:, 0] > 0.2)
    assert set(clicks // SAMPLE_RATE) == set(range(15))


def test_the_engine_mixes_it_in_and_hands_it_on(tmp_path: Path) -> None:
    path = tmp_path / "beside.wav"
    sound = noise(30_000, 2)
    soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")
    listening = FileListening(path, ignore)
    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    engine.beside = listening
    heard, apart = fan.reader(100), listening.fan.reader(100)
    engine.start()
    try:
        for index in range(10):
            mixed, alone = heard.read(2.0), apart.read(2.0)
            assert mixed is not None
            assert alone is not None
            assert mixed.time_monotonic == alone.time_monotonic
            assert np.abs(mixed.samples.astype(int) - alone.samples).max() <= 1
            expected = 32_767 * sound[index * BLOCK : (index + 1) * BLOCK]
            assert np.abs(alone.samples - expected).max() <= 1
    finally:
        engine.stop()
        listening.close()
    assert listening.late_samples == 0


def test_a_late_decoder_is_silence_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slow.wav"
    sound = noise(200_000, 2)
    soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")
    gate = threading.Event()
    gate.set()
    read = soundfile.SoundFile.read

    def slow(self: soundfile.SoundFile, *more: object, **named: object) -> np.ndarray:
        if threading.current_thread().name == "kmidi listening":
            gate.wait()
        return read(self, *more, **named)

    monkeypatch.setattr(soundfile.SoundFile, "read", slow)
    gate.clear()
    listening = FileListening(path, ignore)
    try:
        pieces, begun = [], time.perf_counter()
        while listening.late_samples < 5 * BLOCK:
            pieces.append(listening.pull(BLOCK))
        assert time.perf_counter() - begun < 1.0
        found = np.concatenate(pieces)
        given = len(found) - listening.late_samples
        assert 0 < given < 200_000
        np.testing.assert_array_equal(found[:given], sound[:given])
        assert not found[given:].any()
        gate.set()
        while listening._ahead * SAMPLE_RATE < BLOCK:
            time.sleep(0.001)
        np.testing.assert_array_equal(listening.pull(BLOCK), sound[given : given + BLOCK])
    finally:
        gate.set()
        listening.close()


def broken_flac(path: Path) -> None:
    soundfile.write(path, noise(400_000, 1), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_inside(path: Path) -> None:
    sound = noise(100_000, 2)
    sound[70_000, 1] = np.nan
    soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "name", "sentence"),
    [
        (broken_flac, "half.flac", r"half\.flac (breaks off|cannot be read on)"),
        (nan_inside, "nan.wav", r"nan\.wav has a sample of nan at 1\.587 s"),
    ],
)
def test_a_file_that_breaks_off_is_said_and_leaves_silence(
    tmp_path: Path, make: Callable[[Path], None], name: str, sentence: str
) -> None:
    path = tmp_path / name
    make(path)
    lost: list[Exception] = []

    def on_lost(error: Exception) -> None:
        lost.append(error)
        listening.close()

    listening = FileListening(path, on_lost)
    played = 0
    for _ in range(5000):
        played += int(listening.pull(BLOCK).any())
        if lost:
            break
        time.sleep(0.001)
    (error,) = lost
    # what comes before is heard
    assert played > 70
    assert isinstance(error, KmidiError)
    with pytest.raises(KmidiError, match=sentence):
        raise error
    before = listening.late_samples
    for _ in range(300):
        last = listening.pull(BLOCK)
    assert not last.any()
    assert listening.late_samples == before
    listening.close()


def test_what_cannot_be_listened_to_is_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("not sound")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros((0, 2)), SAMPLE_RATE)
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full((100, 2), np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    slow = tmp_path / "slow.wav"
    soundfile.write(slow, np.zeros(100), 500)
    for name, sentence in [
        (tmp_path / "none.wav", "no such sound file"), (tmp_path, "is not a file"),
        (text, "cannot be read as sound"), (empty, "0 samples"), (nan, "has a sample of nan"),
        (slow, "500 Hz"),
    ]:  # fmt: skip
        with pytest.raises(KmidiError, match=sentence):
            listen_to(str(name), ignore)
    assert not [one for one in threading.enumerate() if one.name == "kmidi listening"]


def test_the_decoder_waits_when_nobody_pulls(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, noise(100_000, 2), SAMPLE_RATE)
    listening = FileListening(path, ignore)
    try:
        while listening._ahead < 4.0:
            time.sleep(0.001)
        time.sleep(0.05)
        ahead = listening._ahead
        # no more than one block past what is wanted, and no turning in circles
        assert ahead < 4.5
        begun = time.thread_time(), time.process_time()
        time.sleep(0.2)
        assert time.process_time() - begun[1] < 0.1
        assert listening._ahead == ahead
    finally:
        listening.close()
