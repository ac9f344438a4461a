from __future__ import annotations

import numpy as np
import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.axes import BAND_EDGES_HZ, BAND_Y, BAND_Y_EDGES, check_mel, pitch_to_y


def test_bands_are_slaneys() -> None:
    assert BAND_EDGES_HZ[0] == 0.0
    assert BAND_EDGES_HZ[-1] == pytest.approx(22_050.0)
    # below 1 kHz in equal steps, above it in equal ratios
    low = np.diff(BAND_EDGES_HZ[BAND_EDGES_HZ < 1000.0])
    assert np.ptp(low) < 1e-9
    ratio = BAND_EDGES_HZ[60:][1:] / BAND_EDGES_HZ[60:][:-1]
    assert np.ptp(ratio) < 1e-9
    # 27 of Slaney's steps make a factor of 6.4
    step = (15.0 + 27.0 * np.log(22.05) / np.log(6.4)) / 129.0
    assert low[0] == pytest.approx(step * 200.0 / 3.0)


def test_heights_rise_with_pitch() -> None:
    assert BAND_Y_EDGES[0] == -1.0
    assert BAND_Y_EDGES[-1] == 1.0
    assert (np.diff(BAND_Y_EDGES) >= 0.0).all()
    assert ((BAND_Y_EDGES[:-1] <= BAND_Y) & (BAND_Y_EDGES[1:] >= BAND_Y)).all()
    octaves = np.diff(pitch_to_y([36, 48, 60, 72, 84, 96]))
    np.testing.assert_allclose(octaves, octaves[0])
    np.testing.assert_array_equal(pitch_to_y([0, 127]), [-1.0, 1.0])


@pytest.mark.parametrize(
    ("mel", "told"),
    [
        (np.zeros((64, 128)), "shape"),
        (np.zeros(128), "shape"),
        (np.zeros((128, 63)), "shape"),
        (np.full((128, 64), 1.01), "band 0 of frame 0"),
        (np.where(np.arange(64) == 7, np.nan, np.zeros((128, 1))), "frame 7"),
        (np.full((128, 64), -0.1), "from 0 to 1"),
        ("loud", "array of numbers"),
    ],
)
def test_wrong_mel(mel: object, told: str) -> None:
    with pytest.raises(KmidiError, match=told):
        check_mel("window", mel, 64)  # type: ignore[arg-type]
