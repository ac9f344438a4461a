from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.music_measures import (
    MEASURES,
    NGRAM_NOTES,
    Summary,
    difference,
    measure,
    middle_of,
    summarise,
)
from kmidi_mlx.music.augment import transpose
from kmidi_mlx.music.mood import mood
from kmidi_mlx.music.notes import Notes

# A bar of broken chords of C, F, G in eighths of 0.25 s.
BAR = [60, 64, 67, 64, 65, 69, 72, 69, 67, 71, 74, 71]


def line(pitches: list[int], step: float = 0.25, velocity: int = 80) -> Notes:
    """One note after the other, without gaps."""
    onset = np.arange(len(pitches)) * step
    return Notes.build(pitches, [velocity] * len(pitches), onset, onset + step)


def values(notes: Notes) -> dict[str, float]:
    return dict(zip(MEASURES, measure([notes])[0].tolist(), strict=True))


def test_a_piece_by_hand() -> None:
    # silence to 1 s; C and E together to 3 s, G within it; silence; C at 4-5 s
    notes = Notes.build([60, 64, 67, 72], [40, 60, 80, 100], [1, 1, 2, 4], [3, 3, 2.5, 5])
    found = values(notes)
    assert found["note_density"] == pytest.approx(4 / 5)
    assert found["mean_pitch"] == pytest.approx(263 / 4)
    assert found["pitch_range"] == 12
    assert found["polyphony"] == pytest.approx((2 + 2 + 0.5 + 1) / 3)
    assert found["mean_velocity"] == 70
    assert found["note_seconds"] == pytest.approx(5.5 / 4)
    assert found["pitch_class_entropy"] == pytest.approx(1.5)
    assert found["empty_share"] == pytest.approx(2 / 5)
    assert found["longest_silence"] == pytest.approx(1)
    assert found["repetition"] == 0
    assert (found["valence"], found["arousal"]) == mood(notes)


def test_a_line_without_gaps_has_no_silence() -> None:
    found = values(line(BAR * 4))
    assert found["polyphony"] == pytest.approx(1)
    assert found["empty_share"] == pytest.approx(0, abs=1e-12)
    assert found["longest_silence"] == pytest.approx(0, abs=1e-12)
    assert found["note_density"] == pytest.approx(4)


def test_repetition_counts_runs_that_were_there_before() -> None:
    found = values(line(BAR * 5))
    # the first note of all has no interval before it, so its run comes once more
    runs = 5 * len(BAR) - NGRAM_NOTES + 1
    assert found["repetition"] == pytest.approx(1 - (len(BAR) + 1) / runs)
    rng = np.random.default_rng(0)
    assert values(line(rng.integers(40, 90, 200).tolist()))["repetition"] == 0
    # the same pitches in ever new rhythms do not repeat
    onset = np.cumsum(rng.choice([0.05, 0.1, 0.2, 0.4], 5 * len(BAR)))
    notes = Notes.build(BAR * 5, [80] * len(onset), onset, onset + 0.05)
    assert values(notes)["repetition"] == 0


def test_equal_times_are_equal_wherever_they_stand() -> None:
    # 0.12 s is the edge of an octave, and no sum of floats gives it twice
    pitches = [60, 62] * 100
    assert values(line(pitches, step=0.12))["repetition"] == pytest.approx(1 - 3 / 193)


def test_a_chord_is_not_a_broken_chord() -> None:
    begin = np.arange(40) * 0.8
    lower, upper = begin, np.where(np.arange(40) < 20, begin, begin + 0.04)
    onset = np.concatenate((lower, upper))
    notes = Notes.build([60] * 40 + [64] * 40, [80] * 80, onset, onset + 0.5)
    # first run, two of chords, two of broken ones, six across the change
    assert values(notes)["repetition"] == pytest.approx(1 - 11 / 73)


def test_the_order_of_a_chord_does_not_matter() -> None:
    chords = np.arange(40) // 4 * 0.5
    late = np.tile([0, 0.01, 0.02, 0.0], 10)
    pitch = [60, 64, 67, 72] * 10
    loose = Notes.build(pitch, [80] * 40, chords + late, chords + 0.4)
    exact = Notes.build(pitch, [80] * 40, chords, chords + 0.4)
    assert values(loose)["repetition"] == pytest.approx(values(exact)["repetition"])
    assert values(exact)["repetition"] > 0.7


def test_self_similarity_is_the_mean_of_all_pairs() -> None:
    same = line([60] * 32)
    assert values(same)["self_similarity"] == pytest.approx(1)
    # four stretches of 2 s: C, C, F#, F# - two of six pairs are equal, the others have nothing
    half = line([60] * 16 + [66] * 16)
    assert values(half)["self_similarity"] == pytest.approx(2 / 6)
    assert values(line([60] * 4))["self_similarity"] == 0


def test_key_clarity_tells_a_scale_from_all_twelve() -> None:
    scale = values(line([60, 62, 64, 65, 67, 69, 71, 72, 60, 64, 67]))["key_clarity"]
    chromatic = values(line(list(range(60, 72))))["key_clarity"]
    assert scale > 0.8 > 0.3 > chromatic
    assert values(line(list(range(60, 72))))["pitch_class_entropy"] == pytest.approx(math.log2(12))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(-20, 20))
def test_ranges_and_invariances(seed: int, count: int, semitones: int) -> None:
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.0, 0.05, 0.3, 2.0], count))
    notes = Notes.build(
        rng.integers(40, 90, count),
        rng.integers(1, 128, count),
        onset,
        onset + rng.uniform(0.02, 1.5, count),
    )
    found = values(notes)
    assert all(math.isfinite(value) for value in found.values())
    assert found["polyphony"] >= 1 - 1e-9
    for name in ("repetition", "self_similarity", "empty_share", "key_clarity"):
        assert 0 <= found[name] <= 1 + 1e-9
    assert 0 <= found["pitch_class_entropy"] <= math.log2(12) + 1e-9
    assert -1 <= found["valence"] <= 1
    assert -1 <= found["arousal"] <= 1
    moved = values(transpose(notes, semitones))
    assert moved["mean_pitch"] == pytest.approx(found["mean_pitch"] + semitones)
    unmoved = set(MEASURES) - {"mean_pitch", "valence", "arousal"}
    for name in unmoved:
        assert moved[name] == pytest.approx(found[name], abs=1e-5), name


def test_pieces_without_notes_are_left_out() -> None:
    rows = measure([Notes.empty(), line(BAR)])
    assert np.isnan(rows[0]).all()
    summary = summarise(rows)
    assert set(summary) == set(MEASURES)
    assert summary["mean_pitch"].mean == pytest.approx(np.mean(BAR))
    assert summary["mean_pitch"].deviation is None  # of one piece there is none


@pytest.mark.parametrize("pieces", [[], [Notes.empty()]])
def test_an_empty_set_has_no_values(pieces: list[Notes]) -> None:
    rows = measure(pieces)
    assert rows.shape == (len(pieces), len(MEASURES))
    assert set(summarise(rows).values()) == {Summary(None, None)}


def test_a_summary_is_mean_and_deviation_over_pieces() -> None:
    summary = summarise(measure([line([50] * 8), line([60] * 8), line([70] * 8)]))
    assert summary["mean_pitch"] == Summary(60.0, 10.0)


def test_difference_is_in_deviations_of_the_reference() -> None:
    assert difference(Summary(7.0, 1.0), Summary(5.0, 4.0)) == 0.5
    assert difference(Summary(None, None), Summary(5.0, 4.0)) is None
    assert difference(Summary(7.0, None), Summary(5.0, 0.0)) is None


def test_the_middle_of_a_piece() -> None:
    notes = line(list(range(40, 60)), step=1.0)
    middle = middle_of(notes, 4.0)
    assert middle.pitch.tolist() == [48, 49, 50, 51]
    assert middle.onset_seconds[0] == 0
    assert middle_of(notes, 20.0) is notes
