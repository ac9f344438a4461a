from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from tiny_soundfont import (
    CUTOFF,
    LOOP,
    PAN,
    ROOT,
    Sample,
    Zone,
    sine_sample,
    write_soundfont,
)

from kmidi_mlx.audio import decoded_cache
from kmidi_mlx.audio.decoded_cache import cache_folder, load_recordings, save_recordings
from kmidi_mlx.audio.instrument import Instrument, load_instrument, piano
from kmidi_mlx.errors import KmidiError


def recording_frames(instrument: Instrument, pitch: int, velocity: int) -> np.ndarray:
    (layer,) = instrument.layers_of(pitch, velocity)
    recording = instrument.recording_of(layer, velocity)
    return instrument.frames[recording.start : recording.loop_end]


def stereo_font(path: Path, compressed: bool = False) -> Path:
    tones = [sine_sample(441.0), sine_sample(882.0)]
    zones = [Zone(0, {LOOP: 1, PAN: -500}), Zone(1, {LOOP: 1, PAN: 500})]
    tones[1].loop = tones[0].loop
    return write_soundfont(path, tones, [zones], compressed=compressed)


# --- recordings ----------------------------------------------------------------------------------


def test_two_sides_become_one_stereo_recording(tmp_path: Path) -> None:
    instrument = load_instrument(stereo_font(tmp_path / "a.sf2"))
    assert len(instrument.layers) == 1
    frames = recording_frames(instrument, 60, 127)
    # oversampled twice, as middle C is
    bright = frames[: 2 * 22_050 : 2]
    times = np.arange(22_050) / 44_100
    assert np.abs(bright.real - 0.5 * np.sin(2 * np.pi * 441 * times))[50:-50].max() < 1e-3
    assert np.abs(bright.imag - 0.5 * np.sin(2 * np.pi * 882 * times))[50:-50].max() < 1e-3


def test_sides_that_differ_stay_apart(tmp_path: Path) -> None:
    tones = [sine_sample(), sine_sample()]
    zones = [Zone(0, {LOOP: 1, PAN: -500, CUTOFF: 9000}), Zone(1, {LOOP: 1, PAN: 500})]
    instrument = load_instrument(write_soundfont(tmp_path / "a.sf2", tones, [zones]))
    assert len(instrument.layers_of(60, 100)) == 2


@pytest.mark.parametrize("velocity", [10, 127])
def test_loops_go_on_without_a_step(tmp_path: Path, velocity: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 3000)
    tone = Sample(noise, (1000, 2000))
    zone = Zone(0, {LOOP: 1, CUTOFF: 10_000})
    instrument = load_instrument(write_soundfont(tmp_path / "a.sf2", [tone], [[zone]]))
    (layer,) = instrument.layers_of(60, velocity)
    recording = instrument.recording_of(layer, velocity)
    behind = instrument.frames[recording.loop_end : recording.loop_end + 40]
    again = instrument.frames[recording.loop_start : recording.loop_start + 40]
    assert np.abs(behind - again).max() < 1e-6


def test_quiet_is_dark(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000)
    zone = Zone(0, {CUTOFF: 10_800, ROOT: 48})
    instrument = load_instrument(write_soundfont(tmp_path / "a.sf2", [Sample(noise)], [[zone]]))

    def gain_db(velocity: int, hz: float) -> float:
        spectrum = np.abs(np.fft.rfft(recording_frames(instrument, 60, velocity)[:20_000].real))
        original = np.abs(np.fft.rfft(noise)) * np.sqrt(0.5)  # in the middle, at constant power
        low, high = (int(hz * factor * 20_000 / 44_100) for factor in (0.95, 1.05))
        return float(20 * np.log10(spectrum[low:high].mean() / original[low:high].mean()))

    # 10,800 cents are 4186 Hz, and 1200 cents less at half the velocity
    assert gain_db(127, 300) == pytest.approx(0, abs=0.3)
    assert gain_db(127, 4186) == pytest.approx(-3, abs=0.5)
    assert gain_db(63, 2093) == pytest.approx(-3, abs=0.7)
    assert gain_db(63, 8372) < -20


def test_velocity_alone_does_not_close_a_low_filter(tmp_path: Path) -> None:
    zone = Zone(0, {CUTOFF: 8_000, LOOP: 1})
    instrument = load_instrument(write_soundfont(tmp_path / "a.sf2", [sine_sample()], [[zone]]))
    low, high = (recording_frames(instrument, 60, velocity) for velocity in (1, 127))
    assert np.array_equal(low, high)


def test_what_is_wide_open_is_not_filtered(tmp_path: Path) -> None:
    instrument = load_instrument(
        write_soundfont(
            tmp_path / "a.sf2",
            [sine_sample(root=48)],
            [[Zone(0, {CUTOFF: 13_500}, [(0x0102, CUTOFF, 0, 0, 0)])]],
        )
    )
    assert np.array_equal(
        recording_frames(instrument, 60, 1), recording_frames(instrument, 60, 127)
    )


def test_warming_changes_nothing(tmp_path: Path) -> None:
    path = stereo_font(tmp_path / "a.sf2")
    warm, cold = load_instrument(path), load_instrument(path)
    warm.warm()
    for velocity in (1, 50, 90, 127):
        one, other = (recording_frames(each, 60, velocity) for each in (warm, cold))
        assert np.array_equal(one, other)
        assert np.abs(one).max() > 0.1
    assert not warm._pending


def test_a_key_without_a_sound_plays_nothing(tmp_path: Path) -> None:
    zone = Zone(0, {43: 60 | 70 << 8, LOOP: 1})
    instrument = load_instrument(write_soundfont(tmp_path / "a.sf2", [sine_sample()], [[zone]]))
    assert instrument.layers_of(59, 100) == []
    assert len(instrument.layers_of(60, 100)) == 1


def test_the_piano_is_read_once() -> None:
    assert piano() is piano()
    assert all(piano().layers_of(pitch, 80) for pitch in range(21, 109))


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KMIDI_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def some_recordings(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=size) + 1j * random.normal(size=size)).astype(np.complex64)
        for size in (3, 1000, 1)
    ]


def test_what_is_decoded_is_kept(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stereo_font(tmp_path / "a.sf3", compressed=True)
    first = load_instrument(path)
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr("kmidi_mlx.audio.instrument.decode_sound", None)  # must not be needed
    second = load_instrument(path)
    assert np.array_equal(recording_frames(first, 60, 90), recording_frames(second, 60, 90))


def test_plain_numbers_need_no_cache(tmp_path: Path, own_cache: Path) -> None:
    load_instrument(stereo_font(tmp_path / "a.sf2"))
    assert not own_cache.exists()


def test_a_damaged_cache_is_made_anew(tmp_path: Path, own_cache: Path) -> None:
    path = stereo_font(tmp_path / "a.sf3", compressed=True)
    whole = recording_frames(load_instrument(path), 60, 127)
    (kept,) = own_cache.iterdir()
    content = kept.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", content[:30], content[:-1], bytes(flipped), b"x" * len(content)):
        kept.write_bytes(damaged)
        assert np.array_equal(recording_frames(load_instrument(path), 60, 127), whole)
        assert kept.read_bytes() == content


def test_recordings_come_back(own_cache: Path) -> None:
    recordings = some_recordings()
    assert load_recordings("key") is None
    save_recordings("key", recordings)
    back = load_recordings("key")
    assert back is not None
    assert all(map(np.array_equal, back, recordings))
    assert [path.name for path in own_cache.iterdir()] == ["key.bin"]


def test_a_folder_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KMIDI_CACHE", str(tmp_path / "file" / "cache"))
    save_recordings("key", some_recordings())
    assert load_recordings("key") is None
    load_instrument(stereo_font(tmp_path / "a.sf3", compressed=True))


def _write_often(folder: str, seed: int) -> None:
    decoded_cache.os.environ["KMIDI_CACHE"] = folder
    for _ in range(8):
        save_recordings("key", some_recordings(seed))


def test_writers_at_the_same_time_do_not_mix(own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(str(own_cache), k)) for k in (1, 2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        found = load_recordings("key")
        if found is not None:
            seen += 1
            assert any(all(map(np.array_equal, found, some_recordings(seed))) for seed in (1, 2))
    assert all(writer.exitcode == 0 for writer in writers)
    assert load_recordings("key") is not None
    assert [path.name for path in own_cache.iterdir()] == ["key.bin"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KMIDI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "kmidi"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "kmidi"


def test_damaged_ogg_is_refused(tmp_path: Path, own_cache: Path) -> None:
    path = stereo_font(tmp_path / "a.sf3", compressed=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"OggS")
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(KmidiError, match=r"a\.sf3: sample 0 is damaged"):
        load_instrument(path)
