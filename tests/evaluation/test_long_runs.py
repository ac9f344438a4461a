from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.long_runs import (
    DRIFTS,
    LOOP_SECONDS,
    Limits,
    faults,
    limits_of,
    measure_stream,
    repeats_of,
)
from kmidi_mlx.evaluation.memorisation import chord_order
from kmidi_mlx.music.augment import slice_notes, transpose
from kmidi_mlx.music.notes import Notes


def tune(seed: int, count: int, step: float = 0.25) -> Notes:
    """A line that moves about the scale of C, always on."""
    rng = np.random.default_rng(seed)
    scale = np.array([60, 62, 64, 65, 67, 69, 71, 72])
    onset = np.arange(count) * step
    return Notes.build(scale[rng.integers(0, 8, count)], [80] * count, onset, onset + step)


def chain(parts: list[Notes], seconds: float) -> Notes:
    """Each part that many seconds after the one before."""
    return Notes.build(
        np.concatenate([part.pitch for part in parts]),
        np.concatenate([part.velocity for part in parts]),
        np.concatenate([part.onset_seconds + k * seconds for k, part in enumerate(parts)]),
        np.concatenate([part.offset_seconds + k * seconds for k, part in enumerate(parts)]),
    )


def song(seed: int) -> Notes:
    """Three minutes: verse, bridge, verse and an end, as music goes."""
    verse, bridge, end = tune(3 * seed, 180), tune(3 * seed + 1, 180), tune(3 * seed + 2, 180)
    return chain([verse, bridge, verse, end], 45.0)


@pytest.fixture(scope="module")
def limits() -> Limits:
    real = [song(seed) for seed in range(20)]
    return limits_of([measure_stream(one, one.duration_seconds, math.inf) for one in real])


def wrong(notes: Notes, seconds: float, limits: Limits) -> list[str]:
    found = faults(measure_stream(notes, seconds, limits.seconds), limits)
    return [name for name, words in found.items() if words]


def test_music_goes_on_without_fault(limits: Limits) -> None:
    assert limits.seconds == pytest.approx(180)
    assert limits.longest_repeat == pytest.approx(45, abs=1)
    stream = chain([song(100), song(101), song(102)], 180.0)
    assert wrong(stream, 540.0, limits) == []


def test_a_loop_is_called_a_loop(limits: Limits) -> None:
    bar = tune(7, 16)
    # three minutes of music, then four seconds over and over
    stuck = chain([song(100), chain([bar] * 45, 4.0)], 180.0)
    assert "looping" in wrong(stuck, 360.0, limits)
    assert "dead" not in wrong(stuck, 360.0, limits)
    found = measure_stream(stuck, 360.0, limits.seconds).worst
    assert found.loop_seconds > 160
    assert found.share > 0.9
    # each time a little late or early, as a model would
    rng = np.random.default_rng(0)
    late = np.cumsum(rng.choice([-0.01, 0.0, 0.01], len(stuck)) * (np.arange(len(stuck)) % 2))
    loose = Notes.build(
        stuck.pitch,
        stuck.velocity,
        stuck.onset_seconds + late - late.min(),
        stuck.offset_seconds + late - late.min(),
    )
    assert "looping" in wrong(loose, loose.duration_seconds, limits)


def test_one_note_for_ever_is_a_loop(limits: Limits) -> None:
    onset = np.arange(1440) * 0.25
    note = Notes.build([60] * 1440, [80] * 1440, onset, onset + 0.2)
    assert "looping" in wrong(note, 360.0, limits)


def test_silence_is_called_dead(limits: Limits) -> None:
    alive = chain([song(100), song(101)], 180.0)
    died = slice_notes(alive, 0.0, 200.0)
    assert "dead" in wrong(died, 360.0, limits)
    assert "dead" in wrong(Notes.empty(), 360.0, limits)
    found = measure_stream(died, 360.0, limits.seconds)
    assert found.longest_rest == pytest.approx(160)
    assert found.notes_by_minute == (240, 240, 240, 80, 0, 0)
    # a note every four seconds is no rest that a limit of music would allow
    onset = np.arange(45) * 4.0
    sparse = chain([song(100), Notes.build([60] * 45, [80] * 45, onset, onset + 3.9)], 180.0)
    assert "dead" in wrong(sparse, 360.0, limits)


def test_what_wanders_off_drifts(limits: Limits) -> None:
    music = chain([song(100), song(101)], 180.0)
    half = len(music) // 2
    high = transpose(music, 24)
    pitch = np.where(np.arange(len(music)) < half, music.pitch, high.pitch)
    wandered = Notes.build(pitch, music.velocity, music.onset_seconds, music.offset_seconds)
    assert wrong(wandered, 360.0, limits) == ["drifting"]
    assert measure_stream(wandered, 360.0, 180.0).drift["mean_pitch"] == pytest.approx(24, abs=1)
    fast = chain([song(100), tune(9, 1440, 0.125)], 180.0)
    stream = measure_stream(fast, 360.0, 180.0)
    assert stream.drift["note_density"] == pytest.approx(1)
    assert any("note density +1.00" in words for words in faults(stream, limits)["drifting"])
    chromatic = Notes.build(
        40 + np.arange(720) * 7 % 45, [80] * 720, np.arange(720) / 4, np.arange(720) / 4 + 0.25
    )
    stream = measure_stream(chain([song(100), chromatic], 180.0), 360.0, 180.0)
    assert {"key clarity", "pitch class"} <= {
        " ".join(words.split()[:2]) for words in faults(stream, limits)["drifting"]
    }


def test_limits_are_of_the_real_pieces(limits: Limits) -> None:
    real = [measure_stream(song(seed), 180.0, math.inf) for seed in range(20)]
    wider = limits_of([*real, replace(real[0], longest_rest=50.0)])
    assert limits.longest_rest < wider.longest_rest <= 50
    assert limits.pieces == 20
    assert set(limits.drift) == set(DRIFTS)
    # 99th percentiles: of twenty pieces only the extremes are beyond
    broken = sum(any(faults(one, limits).values()) for one in real)
    assert broken <= 8


def slow_repeats(notes: Notes) -> tuple[float, float, float]:
    """Every pair of places, note by note."""
    order, starts = chord_order(notes)
    pitch, onset = notes.pitch[order].tolist(), notes.onset_seconds[order]
    onset = np.maximum.accumulate(onset).tolist()
    begin = np.round(notes.onset_seconds[starts] * 100)
    gaps = iter(np.diff(begin, prepend=begin[0]).tolist())
    symbols = [(p, bool(s), next(gaps) if s else 0.0) for p, s in zip(pitch, starts, strict=True)]
    count, loop, longest = len(symbols), 0.0, 0.0
    runs = [0] * count
    for at in range(count):
        for before in range(at):
            length = 0
            while at + length < count:
                (p, s, g), (q, t, h) = symbols[at + length], symbols[before + length]
                if p != q or s != t or abs(g - h) > 3:
                    break
                length += 1
            runs[at] = max(runs[at], length)
            if length:
                lasts = onset[at + length - 1] - onset[at]
                longest = max(longest, lasts)
                if onset[at] - onset[before] <= LOOP_SECONDS:
                    loop = max(loop, lasts)
    there, judged = 0, 0
    for at in range(count):
        size = sum(onset[at] <= t < onset[at] + 4.0 for t in onset[at:])
        if starts[at] and onset[at] + 4.0 <= onset[-1] + 1e-9 and size >= 8:
            judged += 1
            there += runs[at] >= size
    return loop, longest, there / judged if judged else 0.0


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(0, 70), st.sampled_from([2, 4, 30]))
def test_repeats_are_those_of_all_pairs(seed: int, count: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.0, 0.25, 0.27, 0.5], count))
    notes = Notes.build(60 + rng.integers(0, kinds, count), [80] * count, onset, onset + 0.2)
    found = repeats_of(notes)
    if count < 2:
        assert found == repeats_of(Notes.empty())
        return
    expected = slow_repeats(notes)
    assert (found.loop_seconds, found.longest_seconds, found.share) == pytest.approx(expected)


def test_a_verse_is_a_repeat_and_no_loop() -> None:
    found = repeats_of(song(3))
    assert found.longest_seconds == pytest.approx(45, abs=1)
    assert found.loop_seconds < 5
    # of the windows of the second verse
    assert found.share == pytest.approx(1 / 4, abs=0.03)
