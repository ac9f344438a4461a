"""A stream, however it is cut, becomes what the whole recording becomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio.files import resample
from kmidi_mlx.audio.resample_stream import ResampleStream
from kmidi_mlx.errors import KmidiError

RATES = [(44_100, 16_000), (48_000, 44_100), (8_000, 44_100), (96_000, 44_100), (44_100, 44_100)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(RATES), st.lists(st.integers(0, 1500), max_size=8), st.integers(1, 2))
def test_pieces_give_what_the_whole_gives(
    rates: tuple[int, int], cuts: list[int], channels: int
) -> None:
    noise = np.random.default_rng(3).normal(0, 0.2, (sum(cuts), channels)).astype(np.float32)
    stream = ResampleStream(*rates, channels)
    heard, pieces = 0, []
    for count in cuts:
        pieces.append(stream.push(noise[heard : heard + count]))
        heard += count
    pieces.append(stream.finish())
    found = np.concatenate(pieces)
    whole = [resample(noise[:, channel].copy(), *rates) for channel in range(channels)]
    np.testing.assert_allclose(found, np.stack(whole, axis=1), atol=2e-6)
    # it starts anew
    assert len(stream.push(noise[:100])) == len(ResampleStream(*rates, channels).push(noise[:100]))


@pytest.mark.parametrize("rates", RATES[:4])
def test_an_output_waits_for_half_the_filter_only(rates: tuple[int, int]) -> None:
    rate, new_rate = rates
    stream = ResampleStream(rate, new_rate, 2)
    given = 0
    for second in range(1, 4):
        given += len(stream.push(np.zeros((rate, 2), np.float32)))
        waiting = second - given / new_rate
        assert 0 <= waiting <= stream.delay_seconds + 2 / min(rates)
    assert stream.delay_seconds < 0.01


def test_what_is_kept_does_not_grow() -> None:
    stream = ResampleStream(48_000, 44_100, 2)
    sizes = set()
    for _ in range(50):
        stream.push(np.zeros((960, 2), np.float32))
        sizes.add(len(stream._kept))
    assert max(sizes) < 400


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(KmidiError, match="10 Hz"):
        ResampleStream(10, 44_100, 2)
