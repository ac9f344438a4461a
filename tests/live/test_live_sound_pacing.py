"""Blocks follow a card whose clock differs, without a sound being lost or out of tune."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.sound_pacing import Interpolator, SoundPacer

RATE = 44_100


def tone(hz: float, count: int, rate: float = RATE) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(count) / rate)
    return np.stack([wave, -wave], axis=1).astype(np.float32)


@pytest.mark.parametrize("hz", [100.0, 1000.0, 10_000.0, 16_000.0])
@pytest.mark.parametrize("step", [1.0, 1.0007, 0.9991, 44_100 / 48_000])
def test_a_tone_stays_the_tone(hz: float, step: float) -> None:
    found = Interpolator(step, 2).push(tone(hz, 6000), step)
    # where the outputs lie: the first is the first input
    expected = tone(hz * step, len(found))
    clear = slice(100, None)
    apart = np.abs(found[clear] - expected[clear]).max()
    assert apart < 0.5 * 10 ** (-60 / 20)


def test_what_a_slow_card_cannot_play_is_removed() -> None:
    step = 44_100 / 16_000
    interpolator = Interpolator(step, 2)
    assert np.abs(interpolator.push(tone(13_000, 8000), step)[100:]).max() < 1e-3
    assert np.abs(interpolator.push(tone(1_000, 8000), step)[200:]).max() > 0.49


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.floats(0.9, 1.1))
def test_cuts_make_no_difference(cuts: list[int], step: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (sum(cuts), 2)).astype(np.float32)
    whole = Interpolator(step, 2).push(noise, step)
    stream, first, pieces = Interpolator(step, 2), 0, []
    for count in cuts:
        pieces.append(stream.push(noise[first : first + count], step))
        first += count
    found = np.concatenate(pieces)
    # a rounding may put the last output into the next piece
    assert abs(len(found) - len(whole)) <= 1
    shortest = min(len(found), len(whole))
    np.testing.assert_allclose(found[:shortest], whole[:shortest], atol=5e-5)


class Card:
    """Plays what is written by a clock of its own, in lumps, as cards do."""

    lump = 512

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.queue = 3000
        self.capacity = 8192
        self.starved = 0
        self._played = 0

    def room(self, now: float) -> int:
        due = int(now * self.rate) // self.lump * self.lump
        self.queue -= due - self._played
        self._played = due
        if self.queue < 0:
            self.starved += 1
            self.queue = 0
        return self.capacity - self.queue


def play(pacer: SoundPacer, card: Card, blocks: list[tuple[float, float]], count: int) -> list:
    """Play blocks that come at a moment and are to be heard at one; return their delays."""
    delays = []
    for arrival, heard in blocks:
        seen = card.starved
        delay = arrival - card.room(arrival) / RATE - heard
        delays.append(delay)
        card.queue += len(pacer.take(np.zeros((count, 2), np.float32), delay))
        if card.starved > seen:
            pacer.starved()
    return delays


@pytest.mark.parametrize("parts", [1000, -1000, 50])
def test_a_card_that_is_off_is_followed(parts: int) -> None:
    count, seconds = 2205, 100.0
    card, pacer = Card(RATE * (1 + parts / 1e6)), SoundPacer(RATE, RATE)
    moments = np.arange(0, seconds, count / RATE)
    jitter = np.random.default_rng(1).uniform(0, 0.01, len(moments))
    delays = play(pacer, card, [(t + j, t + 0.04) for t, j in zip(moments, jitter, strict=True)],
                  count)  # fmt: skip
    last = np.mean(delays[-100:]) - np.mean(delays[:5])
    # left alone, it would be 100 ms at 1000 parts in a million
    assert abs(last) < 0.02
    assert card.starved == pacer.gaps == 0
    assert pacer.stretch == pytest.approx(-parts / 1e6, abs=4e-4)


def test_lost_blocks_leave_silence_and_late_ones_are_left_out() -> None:
    count = 882
    card, pacer = Card(RATE), SoundPacer(RATE, RATE)

    def steady(first: float, last: float) -> list[tuple[float, float]]:
        return [(t, t + 0.04) for t in np.arange(first, last, count / RATE)]

    before = play(pacer, card, steady(0, 1), count)
    assert pacer.gaps == 0
    # 200 ms never came
    play(pacer, card, steady(1.2, 2.2), count)
    assert pacer.gaps == 1
    # 300 ms came too late to be heard at their time, and the card had nothing
    play(pacer, card, [(2.52, heard) for _, heard in steady(2.2, 2.5)], count)
    after = play(pacer, card, steady(2.52, 3.5), count)
    assert card.starved
    # it is played somewhat later since
    assert 0 < np.mean(after[-20:]) - np.mean(before[-20:]) < 0.25
    # a new start keeps whatever delay it begins with
    pacer.start()
    gaps = pacer.gaps
    play(pacer, card, [(t, t - 5.0) for t, _ in steady(3.6, 4.0)], count)
    assert pacer.gaps == gaps


def test_a_source_that_is_often_late_is_played_later_and_then_whole() -> None:
    count = 882
    card, pacer = Card(RATE), SoundPacer(RATE, RATE)
    rng = np.random.default_rng(2)
    moments = np.arange(0, 30, count / RATE)
    # every fifth block comes 80 ms late, and those behind it with it
    late = np.where(rng.uniform(size=len(moments)) < 0.2, 0.08, 0.0)
    late[:100] = 0.0
    arrivals = np.maximum.accumulate(moments + late)
    blocks = [(arrival, t + 0.04) for arrival, t in zip(arrivals, moments, strict=True)]
    play(pacer, card, blocks[:900], count)
    assert 0 < card.starved < 12
    starved, gaps = card.starved, pacer.gaps
    play(pacer, card, blocks[900:], count)
    assert (card.starved, pacer.gaps) == (starved, gaps)


def test_who_is_much_too_late_is_left_out() -> None:
    count = 882
    card, pacer = Card(RATE), SoundPacer(RATE, RATE)
    moments = np.arange(0, 2, count / RATE)
    play(pacer, card, [(t, t + 0.04) for t in moments], count)
    # one second late
    assert len(pacer.take(np.ones((count, 2), np.float32), 1.0 + 0.04)) == 0
    assert pacer.gaps == 1
