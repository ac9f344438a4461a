from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.music_measures import PROFILES, profiles
from kmidi_mlx.music.augment import transpose
from kmidi_mlx.music.notes import Notes
from tests.evaluation.conftest import random_notes


def test_profiles_by_hand() -> None:
    # C and E together at 0 and 0.5 s, G at 0.62 s
    notes = Notes.build(
        [60, 64, 60, 64, 67], [8, 15, 16, 127, 16], [0, 0.01, 0.5, 0.5, 0.62], [1, 1, 1, 1, 0.66]
    )
    found = profiles(notes)
    expected = np.zeros(12)
    expected[[0, 4, 7]] = 0.4, 0.4, 0.2
    np.testing.assert_allclose(found["pitch_classes"], expected)
    steps = found["pitch_class_transitions"].reshape(12, 12)
    assert steps[0, 4] == pytest.approx(0.5)
    assert steps[4, 0] == steps[4, 7] == pytest.approx(0.25)
    # half octaves from 30 ms: 0.12 s is four half octaves above, 0.5 s eight
    between = found["inter_onset_intervals"]
    assert between[5] == between[9] == pytest.approx(0.5)
    # 1, 0.99 s: ten; 0.5 s: eight; 0.04 s: none
    lengths = found["note_lengths"]
    assert lengths[[1, 9, 11]].tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert found["velocities"][[1, 2, 15]].tolist() == pytest.approx([0.4, 0.4, 0.2])


def test_what_comes_back_after_three_seconds_is_seen_at_that_lag() -> None:
    onset = np.arange(36) * 0.5
    pitch = np.tile([60, 60, 65, 65, 70, 70], 6)
    notes = Notes.build(pitch, [80] * 36, onset, onset + 0.4)
    found = profiles(notes)["self_similarity_by_lag"]
    np.testing.assert_allclose(found, [0, 0, 1] * 4, atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 60), st.integers(-20, 20))
def test_shares_sum_to_one_and_move_with_the_key(seed: int, count: int, semitones: int) -> None:
    notes = random_notes(seed, count)
    found = profiles(notes)
    assert {name: len(row) for name, row in found.items()} == PROFILES
    for name, row in found.items():
        assert (row >= 0).all()
        if name != "self_similarity_by_lag":
            assert row.sum() == pytest.approx(1) or not row.any()
    assert found["pitch_classes"].any() == (count > 0)
    moved = profiles(transpose(notes, semitones))
    np.testing.assert_allclose(
        moved["pitch_classes"], np.roll(found["pitch_classes"], semitones), atol=1e-12
    )
    for name in set(PROFILES) - {"pitch_classes", "pitch_class_transitions"}:
        if abs(semitones) % 12 == 0 or name != "self_similarity_by_lag":
            np.testing.assert_allclose(moved[name], found[name], atol=1e-9)
