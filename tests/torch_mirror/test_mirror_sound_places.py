"""The PyTorch mirror measures a window of sound as MLX does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kmidi_mlx.models import sound_places as ours

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import sound_places as theirs  # noqa: E402

Compare = Callable[[Any, Any], float]


@pytest.mark.parametrize("loudness", [0.0, 0.4, 0.7, 1.0])
def test_places_and_codes(loudness: float, apart: Compare) -> None:
    draw = np.random.default_rng(0)
    windows = (loudness * draw.uniform(size=(2, 128, 64)) ** 3).astype(np.float32)
    expected = ours.sound_places(mx.array(windows))
    found = theirs.sound_places(torch.from_numpy(windows))
    for field in fields(expected):
        mine, other = (getattr(places, field.name) for places in (expected, found))
        scale = max(1.0, np.array(mine).max())
        assert apart(mine, other) < 1e-5 * scale  # measured 7.7e-7
    for height, width in ((32, 16), (4, 2)):
        codes = ours.place_codes(expected, height, width)
        assert apart(codes, theirs.place_codes(found, height, width)) < 1e-4  # measured 2.1e-5
    assert apart(ours.now_codes(expected), theirs.now_codes(found)) < 1e-5  # measured 3.0e-8


def test_half_precision_and_silence_stay_finite() -> None:
    for loudness in (0.0, 1.0):
        windows = torch.full((2, 128, 64), loudness, dtype=torch.float16)
        codes = theirs.place_codes(theirs.sound_places(windows), 16, 8)
        assert codes.dtype == torch.float16
        assert torch.isfinite(codes).all()
