from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_soundfont import (
    ATTACK,
    ATTENUATION,
    COARSE,
    CUTOFF,
    DECAY,
    FINE,
    FROM_VELOCITY,
    KEYS,
    LOOP,
    PAN,
    RELEASE,
    ROOT,
    SUSTAIN,
    VELOCITIES,
    Sample,
    Zone,
    sine_sample,
    span,
    write_soundfont,
)

from kmidi_mlx.audio.instrument import PIANO, load_instrument
from kmidi_mlx.audio.soundfont import decode_sound, read_preset
from kmidi_mlx.errors import KmidiError


def test_the_piano_of_the_package() -> None:
    preset = read_preset(PIANO)
    assert preset.name == "Yamaha Grand Piano"
    assert (PIANO.parent / "COPYING").read_text("utf-8").count("MIT license") == 1
    for pitch in range(21, 109):
        for velocity in (1, 64, 65, 127):
            hits = [
                region
                for region in preset.regions
                if region.keys[0] <= pitch <= region.keys[1]
                and region.velocities[0] <= velocity <= region.velocities[1]
            ]
            # left and right of one stereo recording
            assert sorted(region.pan for region in hits) == [-0.5, 0.5]


def test_zones_say_what_the_file_says(tmp_path: Path) -> None:
    tone = sine_sample(rate=32_000, root=64)
    shared = Zone(-1, {ATTACK: -1200, PAN: 250, SUSTAIN: 100})
    zone = Zone(
        0,
        {KEYS: span(30, 80), PAN: -500, DECAY: 1200, LOOP: 1, ROOT: 61, COARSE: 2, FINE: -25},
        [(FROM_VELOCITY, CUTOFF, -1000, 0, 0)],
    )
    other = Zone(0, {KEYS: span(90, 100)})
    preset_zone = Zone(
        0, {KEYS: span(20, 60), VELOCITIES: span(10, 90), ATTENUATION: 50, DECAY: 1200, LOOP: 0}
    )
    path = write_soundfont(
        tmp_path / "a.sf2", [tone], [[shared, zone, other]], [(0, 0, [preset_zone])]
    )
    (region,) = read_preset(path).regions  # the other zone has no key in common with the preset's
    assert region.keys == (30, 60)
    assert region.velocities == (10, 90)
    assert region.pan == -0.5
    assert region.attenuation_db == pytest.approx(5 * 0.4)
    assert region.root_key == pytest.approx(61 - 1.75)
    assert region.velocity_to_cents == -1000
    assert region.envelope.attack_seconds == pytest.approx(0.5)
    assert region.envelope.decay_seconds == pytest.approx(4.0)  # the preset's time adds
    assert region.envelope.sustain_db == 10.0
    assert region.envelope.release_seconds == 0.0
    assert (region.sound.loop_start, region.sound.loop_end) == tone.loop
    assert region.sound.rate == 32_000


def test_the_sample_says_where_the_zone_is_silent(tmp_path: Path) -> None:
    tone = replace(sine_sample(root=57), correction=10)
    path = write_soundfont(tmp_path / "a.sf2", [tone], [[Zone(0, {ROOT: -1})]])
    (region,) = read_preset(path).regions
    assert region.root_key == pytest.approx(57 - 0.1)
    assert region.sound.loop_end is None
    assert region.velocity_to_cents == -2400


@pytest.mark.parametrize("compressed", [False, True])
def test_recordings_are_decoded(tmp_path: Path, compressed: bool) -> None:
    tones = [sine_sample(300.0), sine_sample(700.0)]
    zones = [Zone(0, {LOOP: 1, PAN: -500}), Zone(1, {LOOP: 1, PAN: 500})]
    path = write_soundfont(tmp_path / "a.sf2", tones, [zones], compressed=compressed)
    for region, tone in zip(read_preset(path).regions, tones, strict=True):
        decoded = decode_sound(path, region.sound)
        assert len(decoded) == len(tone.wave)
        assert np.abs(decoded - tone.wave).max() < (0.06 if compressed else 1e-4)
        assert (region.sound.loop_start, region.sound.loop_end) == tone.loop


def test_a_filter_that_moves_stands_at_its_mean_over_a_second(tmp_path: Path) -> None:
    def cutoff(decay: int, sustain: int) -> float:
        moving = {CUTOFF: 7000, 11: 3000, 28: decay, 29: sustain}
        path = write_soundfont(tmp_path / "a.sf2", [sine_sample()], [[Zone(0, moving)]])
        return read_preset(path).regions[0].cutoff_cents

    assert cutoff(8000, 1000) == pytest.approx(10_000, abs=50)  # falls for 100 s
    assert cutoff(-9000, 1000) == pytest.approx(7000, abs=50)  # falls within 6 ms
    assert cutoff(-9000, 500) == pytest.approx(8500, abs=50)
    assert cutoff(0, 1000) == pytest.approx(8500, abs=50)  # falls for 1 s


def test_rom_samples_play_nothing(tmp_path: Path) -> None:
    rom = replace(sine_sample(), type=0x8001)
    path = write_soundfont(tmp_path / "a.sf2", [rom], [[Zone()]])
    with pytest.raises(KmidiError, match="plays nothing"):
        read_preset(path)


def test_a_missing_preset_is_named(tmp_path: Path) -> None:
    presets = [(8, 40, [Zone()]), (8, 41, [Zone()])]
    path = write_soundfont(tmp_path / "a.sf2", [sine_sample()], [[Zone()]], presets)
    assert len(read_preset(path, 8, 41).regions) == 1
    with pytest.raises(KmidiError, match="no preset 0 in bank 0; its first is 40 in bank 8"):
        read_preset(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sf2").write_text("not a SoundFont")
    (tmp_path / "empty.sf2").write_bytes(b"")
    for name in ("text.sf2", "empty.sf2"):
        with pytest.raises(KmidiError, match=f"{name} is not a SoundFont"):
            read_preset(tmp_path / name)
    for name in ("missing.sf2", "."):
        with pytest.raises(KmidiError, match="no such SoundFont"):
            read_preset(tmp_path / name)


def test_a_loop_outside_its_recording_is_refused(tmp_path: Path) -> None:
    tone = replace(sine_sample(), loop=(10, 400_000))
    path = write_soundfont(tmp_path / "a.sf2", [tone], [[Zone(0, {LOOP: 1})]])
    with pytest.raises(KmidiError, match="loop of sample 0 lies outside"):
        load_instrument(path)


def small_file(folder: Path) -> bytes:
    wave = 0.5 * np.sin(np.arange(400) / 5)
    zones = [Zone(-1, {RELEASE: -2000}), Zone(0, {LOOP: 1}), Zone(0, {PAN: 100})]
    tone = Sample(wave, (100, 300))
    return write_soundfont(folder / "whole.sf2", [tone], [zones]).read_bytes()


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = small_file(tmp_path)
    load_instrument(tmp_path / "whole.sf2")
    path = tmp_path / "cut.sf2"
    for size in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(KmidiError, match=r"cut\.sf2"):
            load_instrument(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(small_file(tmp_path))
    tables = content.index(b"pdta")
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(tables if data.draw(st.booleans()) else 0, len(content) - 2))
        value = data.draw(st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFF]))
        content[where : where + 2] = struct.pack("<H", value)
    path = tmp_path / "damaged.sf2"
    path.write_bytes(content)
    try:
        instrument = load_instrument(path)
    except KmidiError:
        with pytest.raises(KmidiError, match=r"^[^\n]*damaged\.sf2[^\n]*$"):
            load_instrument(path)
    else:
        assert np.isfinite(instrument.frames[:1000]).all()
