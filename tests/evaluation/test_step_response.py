from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.evaluation.steering import quadrant_changes, statistics_of
from kmidi_mlx.evaluation.step_response import RESPONSE_MEASURES, Response, reach, responses_of
from kmidi_mlx.music.notes import Notes

Floats = NDArray[np.float64]
SECONDS = 30
ASKED = np.array([[(e.valence, e.arousal) for e in change] for change in quadrant_changes() * 2])


def one_reach(curve: list[float], before: float, after: float, share: float) -> float:
    return float(reach(np.array([curve]), np.array([before]), np.array([after]), share)[0])


@given(
    delay=st.integers(0, 8),
    before=st.floats(-50, 50),
    way=st.floats(0.5, 50),
    falls=st.booleans(),
    share=st.floats(0.1, 0.9),
)
def test_a_step_is_found_where_it_is(
    delay: int, before: float, way: float, falls: bool, share: float
) -> None:
    after = before - way if falls else before + way
    curve = [before] * delay + [after] * (12 - delay)
    # between the value before the step and the one after it the line is straight
    assert one_reach(curve, before, after, share) == pytest.approx(delay - 1 + share, abs=1e-6)


@settings(max_examples=20)
@given(tau=st.floats(1.5, 5.0), share=st.sampled_from([0.5, 0.9]))
def test_an_exponential_is_reached_in_its_time(tau: float, share: float) -> None:
    edges = np.arange(41.0)
    curve = 1 - tau * (np.exp(-edges[:-1] / tau) - np.exp(-edges[1:] / tau))
    found = 0.5 + one_reach(curve.tolist(), 0.0, 1.0, share)
    assert found == pytest.approx(-tau * math.log(1 - share), abs=0.15)


def test_a_lone_value_does_not_count_and_a_gap_does_not_harm() -> None:
    lone = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert one_reach(lone, 0.0, 1.0, 0.5) == 4.5
    gap = [0.0, 1.0, np.nan, 1.0, 1.0]
    assert one_reach(gap, 0.0, 1.0, 0.5) == 0.5
    assert one_reach([np.nan, 1.0, 1.0], 0.0, 1.0, 0.5) == 0.5


def test_never_and_nowhere_to_go() -> None:
    assert one_reach([0.0, 0.2, 0.4], 0.0, 1.0, 0.5) == math.inf
    assert one_reach([], 0.0, 1.0, 0.5) == math.inf
    assert math.isnan(one_reach([1.0, 1.0], 1.0, 1.0, 0.5))
    assert math.isnan(one_reach([1.0, 1.0], np.nan, 1.0, 0.5))


def stream(asked: Floats, delay: float, seed: int) -> Notes:
    """Rate and loudness follow arousal after a delay, pitch follows valence at once."""
    rng, time = np.random.default_rng(seed), 0.0
    rows = []
    while time < SECONDS:
        arousal = asked[int(time >= SECONDS / 2 + delay), 1]
        valence = asked[int(time >= SECONDS / 2), 0]
        rows.append((60 + round(8 * valence) + rng.integers(-2, 3), 80 + 30 * arousal, time))
        time += 1 / (10 + 8 * arousal)
    pitch, velocity, onset = (np.array(column) for column in zip(*rows, strict=True))
    return Notes.build(pitch, velocity.round().astype(int), onset, onset + 0.02)


def measured(delay: float) -> dict[tuple[str, str, str], Response]:
    bins = [
        statistics_of(stream(asked, delay, seed), 1.0, SECONDS) for seed, asked in enumerate(ASKED)
    ]
    found = responses_of(ASKED, np.stack(bins))
    return {(r.measure, r.axis, r.direction): r for r in found}


@pytest.mark.parametrize("delay", [0, 3, 5])
def test_the_delay_of_music_is_found(delay: int) -> None:
    found = measured(delay)
    assert len(found) == len(RESPONSE_MEASURES) * 2 * 3
    for measure in ("note_rate", "mean_velocity"):
        for direction, streams in (("up", 8), ("down", 8), ("difference", 16)):
            response = found[measure, "arousal", direction]
            assert response.streams == streams
            assert response.change.excludes_zero
            assert response.half_seconds.value == pytest.approx(delay, abs=0.35)
            assert response.ninety_seconds.value == pytest.approx(delay + 0.6, abs=0.6)
    up = found["note_rate", "arousal", "up"]
    # 10 + 8 * ±0.9 notes a second
    assert (up.before, up.after) == (pytest.approx(2.8, abs=0.2), pytest.approx(17.2, abs=0.2))
    apart = found["note_rate", "arousal", "difference"]
    assert apart.change.value == pytest.approx(2 * 14.4, abs=0.4)
    assert apart.seconds[0] == -14.5
    assert apart.curve[0] == pytest.approx(-14.4, abs=1.0)
    # the window of the label model blurs the change, and does not put it off
    mood = found["arousal", "arousal", "difference"]
    assert mood.half_seconds.value == pytest.approx(delay, abs=1.2)
    pitch = found["mean_pitch", "valence", "difference"]
    assert pitch.change.value == pytest.approx(2 * 14.4, abs=1.5)
    assert pitch.half_seconds.value == pytest.approx(0, abs=0.3)


def test_where_nothing_changes_no_time_is_told() -> None:
    found = measured(math.inf)
    for direction in ("up", "down", "difference"):
        response = found["mean_velocity", "arousal", direction]
        assert response.change.value == pytest.approx(0, abs=1e-9)
        assert response.half_seconds.value is None
        assert response.ninety_seconds.value is None


def test_drift_that_all_streams_share_cancels() -> None:
    """All get faster with time: up and down both rise, their difference does not."""
    bins = []
    for seed in range(len(ASKED)):
        rng = np.random.default_rng(seed)
        onset = np.sqrt(np.sort(rng.uniform(0, (SECONDS - 0.5) ** 2, 150)))
        notes = Notes.build(np.full(150, 60), np.full(150, 80), onset, onset + 0.05)
        bins.append(statistics_of(notes, 1.0, SECONDS))
    found = {(r.measure, r.axis, r.direction): r for r in responses_of(ASKED, np.stack(bins))}
    for axis in ("valence", "arousal"):
        for direction in ("up", "down"):
            rise = found["note_rate", axis, direction].change
            assert rise.low is not None
            assert rise.low > 1
        level = found["note_rate", axis, "difference"].change
        assert level.value == pytest.approx(0, abs=1.0)


def test_streams_of_one_direction_tell_nothing_of_the_axis() -> None:
    asked = ASKED[:1].repeat(3, axis=0)  # valence goes down, arousal stays
    bins = np.stack([statistics_of(stream(a, 0, k), 1.0, SECONDS) for k, a in enumerate(asked)])
    assert responses_of(asked, bins) == []


def test_silent_streams_are_no_trouble() -> None:
    bins = np.zeros((len(ASKED), 12, 33))
    for response in responses_of(ASKED, bins):
        if response.measure == "note_rate":
            assert (response.before, response.after) == (0, 0)
        else:
            assert set(response.curve) == {None}
        assert response.half_seconds.value is None
