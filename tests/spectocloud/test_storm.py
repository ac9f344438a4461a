from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT, ANCHOR_POSITIONS
from kmidi_mlx.spectocloud.storm import Storm, bolt, charged


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=200))
def test_law(energies: list[float]) -> None:
    storm, charge, strikes = Storm(), 0.0, 0
    for energy in energies:
        storm = charged(storm, energy, 3)
        charge = charge - 0.06 * charge + 1.2 * energy
        if charge > 14.0:
            charge, strikes = charge * 0.45, strikes + 1
        assert storm.charge == pytest.approx(charge)
        assert storm.strikes == strikes


@pytest.mark.parametrize(("energy", "struck"), [(0.69, False), (0.72, True), (1.0, True)])
def test_only_high_energy_strikes(energy: float, struck: bool) -> None:
    storm = Storm()
    for _ in range(600):
        storm = charged(storm, energy, 0)
    assert (storm.strikes > 0) == struck
    assert storm.strikes <= 600 / 60 * 5


def test_flash_is_full_at_the_strike_then_fades_to_nothing() -> None:
    storm = charged(Storm(charge=14.0), 1.0, 5)
    assert storm.flash == 1.0
    assert storm.anchor == 5
    seen = []
    for _ in range(60):
        storm = charged(storm, 0.0, 7)
        seen.append(storm.flash)
    assert all(a > b or a == b == 0.0 for a, b in itertools.pairwise(seen))
    assert seen[30] < 0.02
    assert seen[-1] == 0.0
    assert storm.anchor == 5


def test_charge_leaks_away() -> None:
    storm = Storm(charge=10.0)
    for _ in range(200):
        storm = charged(storm, 0.0, 0)
    assert storm.charge < 1e-3
    assert storm.tension < 1e-4


def test_bolt_runs_from_its_anchor_to_the_target_differently_each_time() -> None:
    for anchor in range(ANCHOR_COUNT):
        ways = [bolt(Storm(0.0, 1.0, strikes, anchor), (0.1, -0.2, 0.3)) for strikes in (1, 2)]
        for way in ways:
            np.testing.assert_allclose(way[0], ANCHOR_POSITIONS[anchor], atol=1e-5)
            np.testing.assert_allclose(way[-1], (0.1, -0.2, 0.3), atol=1e-5)
        assert np.abs(ways[0] - ways[1]).max() > 0.02
