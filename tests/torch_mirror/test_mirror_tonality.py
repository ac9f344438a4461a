"""The PyTorch mirror hears the same mode and key as MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.models import tonality as ours

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import tonality as theirs  # noqa: E402

Compare = Callable[[Any, Any], float]


def semitones(*shape: int) -> NDArray[np.float32]:
    """Chords with plateaus and silence between them."""
    rng = np.random.default_rng(0)
    drawn = np.maximum(rng.uniform(-0.5, 1.0, (*shape, SEMITONES)), 0.0)
    return np.round(drawn, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 40), (7,), ()])
def test_chroma(shape: tuple[int, ...], apart: Compare) -> None:
    level = semitones(*shape)
    expected = ours.chroma(mx.array(level))
    found = theirs.chroma(torch.from_numpy(level))
    loudest = np.array(expected).max()
    assert loudest > 1.0
    assert apart(expected, found) < 1e-5 * loudest  # measured 4.0e-7


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_features(scale: float, apart: Compare) -> None:
    profile = scale * np.random.default_rng(1).gamma(0.5, 1.0, (50, 12)).astype(np.float32)
    expected = ours.tonal_features(mx.array(profile))
    found = theirs.tonal_features(torch.from_numpy(profile))
    assert np.array(expected).std() > 0.5
    assert apart(expected, found) < 1e-4  # measured 4.8e-6


def test_silence_has_no_mode_in_either(apart: Compare) -> None:
    silence = theirs.chroma(torch.zeros(2, 5, SEMITONES))
    assert not silence.any()
    expected = ours.tonal_features(mx.zeros((2, 12)))
    assert apart(expected, theirs.tonal_features(silence.sum(1))) == 0.0


def test_half_precision_is_only_that_of_the_frames(apart: Compare) -> None:
    # all products are made in fp32, also under autocast, as training on CUDA uses it
    level = torch.from_numpy(semitones(2, 40))
    exact = theirs.tonal_features(theirs.chroma(level).sum(1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = theirs.tonal_features(theirs.chroma(level).sum(1))
    assert inside.dtype == torch.float32
    assert torch.equal(exact, inside)
    for dtype, bound in ((torch.float16, 0.005), (torch.bfloat16, 0.05)):
        coarse = theirs.tonal_features(theirs.chroma(level.to(dtype)).sum(1))
        assert apart(exact.numpy(), coarse) < bound  # measured 9e-4, 8.5e-3
