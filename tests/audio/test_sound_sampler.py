from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_soundfont import (
    ATTACK,
    CUTOFF,
    DECAY,
    LOOP,
    RELEASE,
    SUSTAIN,
    Sample,
    Zone,
    sine_sample,
    write_soundfont,
)

from kmidi_mlx.audio import sampler as sampler_module
from kmidi_mlx.audio.instrument import Instrument, load_instrument
from kmidi_mlx.audio.sampler import Sampler, render
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes

RATE = 44_100
SMOOTH = {LOOP: 1, ATTACK: -9_000, RELEASE: -2_400, CUTOFF: 13_500}  # 5.5 ms and 250 ms


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Instrument:
    """A steady sine of 441 Hz on A4 (69) with a soft beginning and end."""
    path = tmp_path_factory.mktemp("font") / "tone.sf2"
    zone = Zone(0, SMOOTH, [(0x0102, CUTOFF, 0, 0, 0)])
    return load_instrument(write_soundfont(path, [sine_sample(root=69)], [[zone]]))


def cents_off(sound: np.ndarray, hz: float) -> float:
    """How far the strongest partial near a frequency is from it."""
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    low, high = (int(hz * factor * size / RATE) for factor in (0.95, 1.05))
    peak = low + int(spectrum[low:high].argmax())
    left, middle, right = np.log(spectrum[peak - 1 : peak + 2])
    exact = peak + 0.5 * (left - right) / (left - 2 * middle + right)
    return float(1200 * np.log2(exact * RATE / size / hz))


def equal_tempered(pitch: int) -> float:
    return float(440 * 2 ** ((pitch - 69) / 12))


def loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound))))


# --- pitch, loudness, time -----------------------------------------------------------------------


@pytest.mark.parametrize("pitch", [21, 40, 60, 69, 76, 90, 108])
def test_pitch_is_exact(tone: Instrument, pitch: int) -> None:
    notes = Notes.build([pitch], [100], [0.0], [3.0])
    sound = render(notes, tone, seconds=3.0)[4410:, 0]
    assert cents_off(sound, equal_tempered(pitch) * 441 / 440) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("pitch", [52, 57, 60, 64, 67, 69, 76])
def test_the_piano_is_in_tune(pitch: int) -> None:
    # further out a piano is stretched, and so are these recordings
    notes = Notes.build([pitch], [90], [0.0], [3.0])
    sound = render(notes, seconds=3.0).mean(axis=1)[8_820:]
    assert cents_off(sound, equal_tempered(pitch)) == pytest.approx(0, abs=3)


def test_other_sample_rates_keep_the_pitch(tone: Instrument) -> None:
    sampler = Sampler(tone, sample_rate=22_050)
    sampler.note_on(69, 100)
    sound = sampler.render_block(44_100)[2_205:, 0]
    assert cents_off(sound, 882) == pytest.approx(0, abs=0.05)  # read as 44,100 Hz


def test_interpolation_is_clean(tone: Instrument) -> None:
    sound = render(Notes.build([76], [127], [0.0], [2.0]), tone, seconds=2.0)[8_820:, 0]
    spectrum = np.abs(np.fft.rfft(sound * np.blackman(len(sound))))
    peak = int(spectrum.argmax())
    elsewhere = np.delete(spectrum, np.arange(peak - 10, peak + 11))
    assert 20 * np.log10(elsewhere.max() / spectrum[peak]) < -60


def test_louder_velocity_is_louder_and_brighter() -> None:
    sounds = [
        render(Notes.build([60], [velocity], [0.0], [1.0]), seconds=1.0)
        for velocity in (10, 30, 50, 64, 65, 80, 100, 127)
    ]
    levels = [loudness(sound) for sound in sounds]
    assert all(quiet < 0.99 * loud for quiet, loud in pairwise(levels))

    def centroid(sound: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(sound[:, 0]))
        return float((spectrum * np.arange(len(spectrum))).sum() / spectrum.sum())

    assert centroid(sounds[0]) < 0.8 * centroid(sounds[-1])


def test_velocity_follows_the_font(tone: Instrument) -> None:
    loud, soft = (
        render(Notes.build([69], [velocity], [0.0], [1.0]), tone, seconds=1.0)[10_000:]
        for velocity in (127, 64)
    )
    assert 20 * np.log10(loudness(loud) / loudness(soft)) == pytest.approx(11.9, abs=0.1)


def test_events_happen_at_their_sample(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.note_on(69, 127, 1_000)
    sound = sampler.render_block(3_000)[:, 0]
    assert not sound[:1_001].any()
    assert sound[1_002:1_010].all()
    first = sampler.position
    sampler.note_on(76, 127, 5)  # too late: it sounds at once
    sampler.note_off(69, 0)
    assert sampler.position == first
    sampler.render_block(10)
    assert sampler.voices == 2


def test_the_envelope_follows_the_font(tmp_path: Path) -> None:
    # half a second of attack and of hold, 100 dB a second down to -20 dB, 1 s of release
    zone = Zone(0, {LOOP: 1, ATTACK: -1200, 35: -1200, DECAY: 0, SUSTAIN: 200, RELEASE: 0})
    path = write_soundfont(tmp_path / "a.sf2", [sine_sample(root=69)], [[zone]])
    sound = render(Notes.build([69], [127], [0.0], [2.0]), load_instrument(path), seconds=3.0)
    level = np.array([np.abs(sound[k : k + 200]).max() for k in range(0, len(sound) - 200, 100)])
    level /= level.max()

    def at(seconds: float) -> float:
        return float(level[round(seconds * 441)])

    assert at(0.25) == pytest.approx(0.5, abs=0.01)
    assert at(0.75) == pytest.approx(1.0, abs=0.01)
    assert 20 * np.log10(at(1.1)) == pytest.approx(-10, abs=0.5)
    assert 20 * np.log10(at(1.8)) == pytest.approx(-20, abs=0.2)
    assert 20 * np.log10(at(2.3)) == pytest.approx(-50, abs=0.5)


# --- laws ----------------------------------------------------------------------------------------

note_lists = st.lists(
    st.tuples(
        st.integers(30, 100),
        st.integers(1, 127),
        st.floats(0, 0.5),
        st.floats(0.001, 0.4),
    ),
    max_size=25,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(note_lists, st.lists(st.integers(1, 3_000), min_size=1, max_size=40), st.integers(1, 12))
def test_the_size_of_the_blocks_does_not_change_the_sound(
    notes: list[tuple[int, int, float, float]], sizes: list[int], polyphony: int
) -> None:
    def prepared() -> Sampler:
        sampler = Sampler(polyphony=polyphony)
        for pitch, velocity, onset, length in notes:
            sampler.note_on(pitch, velocity, round(onset * RATE))
            sampler.note_off(pitch, round((onset + length) * RATE))
        sampler.sustain(True, 5_000)
        sampler.sustain(False, 15_000)
        return sampler

    whole = prepared().render_block(40_000)
    sampler, blocks = prepared(), []
    while sampler.position < 40_000:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(sampler.render_block(min(size, 40_000 - sampler.position)))
    assert np.abs(np.concatenate(blocks) - whole).max() < 1e-5


def test_rendering_again_gives_the_same() -> None:
    notes = Notes.build([60, 64, 67], [90, 80, 100], [0.0, 0.1, 0.2], [0.5, 0.6, 0.7])
    assert np.array_equal(render(notes), render(notes))


def test_voices_add_up() -> None:
    one = Notes.build([60], [90], [0.0], [0.5])
    other = Notes.build([67], [70], [0.25], [0.6])
    both = Notes.build([60, 67], [90, 70], [0.0, 0.25], [0.5, 0.6])
    together = render(both, seconds=1.5)
    assert np.abs(render(one, seconds=1.5) + render(other, seconds=1.5) - together).max() < 1e-5


def test_the_end_is_silent() -> None:
    notes = Notes.build(np.arange(40, 90), np.full(50, 100), np.arange(50) / 50, np.full(50, 1.5))
    sound = render(notes)
    assert 1.5 < len(sound) / RATE < 6
    assert not sound[-1].any()
    assert np.abs(sound[-500:]).max() < 1e-4
    assert np.abs(render(notes, seconds=8.0)[len(sound) :]).max() == 0.0
    assert len(render(notes, seconds=0.5)) == RATE // 2
    assert render(Notes.empty()).shape == (0, 2)


# --- no clicks -----------------------------------------------------------------------------------


def greatest_jump(sound: np.ndarray) -> float:
    """How far the sound is from a straight line through its neighbours."""
    return float(np.abs(np.diff(sound, 2, axis=0)).max())


def test_ends_do_not_click(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.note_on(69, 127)
    steady = sampler.render_block(20_050)[10_000:]
    sampler.note_off(69)
    assert greatest_jump(sampler.render_block(30_000)) < 1.2 * greatest_jump(steady)


def test_stealing_does_not_click(tone: Instrument) -> None:
    sampler = Sampler(tone, polyphony=2)
    for number, pitch in enumerate([60, 64]):
        sampler.note_on(pitch, 127, number)
    sampler.render_block(20_000)
    steady = sampler.render_block(4_000)
    sampler.note_on(67, 127, 30_000)  # takes the place of one that sounds
    after = sampler.render_block(10_000)
    assert sampler.voices == 2
    assert greatest_jump(after) < 1.5 * greatest_jump(steady)
    # with the voice cut off instead, there would be a step of its whole height
    assert np.abs(np.diff(after, axis=0)).max() < 1.5 * np.abs(np.diff(steady, axis=0)).max()


def test_a_struck_key_ends_its_earlier_note_without_a_click(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.note_on(69, 127)
    sampler.render_block(10_000)
    steady = sampler.render_block(5_000)
    sampler.note_on(69, 127)
    # while the old note fades both sound, in step at worst
    assert greatest_jump(sampler.render_block(10_000)) < 2.1 * greatest_jump(steady)
    sampler.note_off(69)
    sampler.render_block(RATE * 2)
    assert sampler.silent


# --- keys, pedal, polyphony ----------------------------------------------------------------------


def test_the_pedal_holds_what_is_let_go(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.sustain(True, 0)
    sampler.note_on(69, 100, 0)
    sampler.note_off(69, 2_000)
    sampler.note_on(76, 100, 100)
    sampler.render_block(RATE)
    assert sampler.voices == 2
    sampler.sustain(False, RATE)
    sampler.render_block(RATE)
    assert sampler.voices == 1  # the key that is still down
    sampler.note_on(76, 0)  # velocity 0 lets go
    sampler.render_block(RATE)
    assert sampler.silent


def test_a_pedal_full_of_repeats_stays_at_one_voice_a_key(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.sustain(True)
    for number in range(20):
        sampler.note_on(69, 100, number * 5_000)
        sampler.note_off(69, number * 5_000 + 1_000)
    sampler.render_block(20 * 5_000)
    assert sampler.voices <= 4


def test_polyphony_is_kept_and_the_loud_stay(tone: Instrument) -> None:
    sampler = Sampler(tone, polyphony=3)
    for pitch, velocity in ((60, 127), (62, 20), (64, 127), (65, 127)):
        sampler.note_on(pitch, velocity, sampler.position)
        sampler.render_block(5_000)
    sound = sampler.render_block(RATE)[:, 0]
    assert sampler.voices == 3
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(RATE)))  # 1 Hz a bin

    def strength(pitch: int) -> float:
        middle = round(equal_tempered(pitch) * 441 / 440)
        return float(spectrum[middle - 3 : middle + 4].max())

    assert min(strength(pitch) for pitch in (60, 64, 65)) > 1000 * strength(62)


def test_a_burst_beyond_all_measure_is_survived(tone: Instrument) -> None:
    sampler = Sampler(tone, polyphony=4)
    for number in range(500):
        sampler.note_on(number % 128, 100, 10)
    assert np.isfinite(sampler.render_block(1_000)).all()
    assert sampler.voices == 4


def test_everything_off(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.sustain(True)
    for pitch in (60, 64, 67):
        sampler.note_on(pitch, 100)
        sampler.note_off(pitch, 1_000)
    sampler.note_on(72, 100, 50_000)
    sampler.render_block(20_000)
    sampler.all_notes_off(60_000)  # also forgets what would come before
    sampler.render_block(40_000)
    assert sampler.voices == 3
    sampler.render_block(RATE)
    assert sampler.silent


def test_everything_off_ends_keys_that_are_down(tone: Instrument) -> None:
    sampler = Sampler(tone)
    for pitch in (60, 64, 67):
        sampler.note_on(pitch, 100)
    sampler.render_block(20_000)
    sampler.all_notes_off(sampler.position)
    sampler.render_block(RATE)
    assert sampler.silent


def test_silence_ends_all_at_once_and_forgets_what_is_to_come(tone: Instrument) -> None:
    sampler = Sampler(tone)
    sampler.sustain(True)
    sampler.note_on(60, 100)
    sampler.note_on(64, 100)
    sampler.note_off(64, 1_000)
    sampler.note_on(72, 100, 30_000)
    loud = np.abs(sampler.render_block(20_000)).max()
    sampler.silence()
    fading = sampler.render_block(RATE)
    assert np.abs(np.diff(fading[:, 0])).max() < loud  # no click
    assert np.abs(fading[round(0.03 * RATE) :]).max() < 1e-3 * loud
    assert sampler.silent
    # the pedal is up again
    sampler.note_on(67, 100, sampler.position)
    sampler.note_off(67, sampler.position + 1_000)
    sampler.render_block(2 * RATE)
    assert sampler.silent


def test_a_recording_without_a_loop_ends(tmp_path: Path) -> None:
    wave = Sample(0.5 * np.sin(np.arange(8_820) / 10) * np.linspace(1, 0, 8_820))
    path = write_soundfont(tmp_path / "a.sf2", [wave], [[Zone(0, {SUSTAIN: 0})]])
    sampler = Sampler(load_instrument(path))
    sampler.note_on(60, 127)
    sound = sampler.render_block(RATE)
    assert np.abs(sound[:8_000]).max() > 0.1
    assert not sound[10_000:].any()
    assert sampler.voices == 0


def test_a_tiny_loop_far_above_its_pitch(tmp_path: Path) -> None:
    period = Sample(0.5 * np.sin(2 * np.pi * np.arange(200) / 20), (100, 120))
    path = write_soundfont(tmp_path / "a.sf2", [period], [[Zone(0, {LOOP: 1})]])
    sound = render(Notes.build([96], [127], [0.0], [1.0]), load_instrument(path), seconds=1.0)
    assert cents_off(sound[10_000:, 0], 2205 * 2**3) == pytest.approx(0, abs=0.1)


# --- wrong use -----------------------------------------------------------------------------------


def test_wrong_use(tone: Instrument) -> None:
    sampler = Sampler(tone)
    for call, text in (
        (lambda: sampler.note_on(128, 1), "pitch is 128"),
        (lambda: sampler.note_off(-1), "pitch is -1"),
        (lambda: sampler.note_on(60, 128), "velocity is 128"),
        (lambda: Sampler(tone, sample_rate=1), "sample_rate is 1"),
        (lambda: Sampler(tone, polyphony=0), "polyphony is 0"),
        (lambda: render(Notes.empty(), tone, seconds=-1.0), "-1"),
        (lambda: render(Notes.empty(), tone, seconds=float("nan")), "nan"),
    ):
        with pytest.raises(KmidiError, match=text):
            call()
    assert sampler.render_block(0).shape == (0, 2)
    assert sampler.render_block(10).dtype == np.float32


@pytest.mark.slow
def test_a_hundred_held_notes_in_fifteen_times_real_time() -> None:
    from time import process_time

    sampler = Sampler()
    for pitch in range(9, 109):
        sampler.note_on(pitch, 80)
    sampler.render_block(sampler_module._SPAN)
    assert sampler.voices >= 100
    start = process_time()
    sampler.render_block(4 * RATE)
    assert 4 / (process_time() - start) > 15
