from __future__ import annotations

import numpy as np
import pytest

from kmidi_mlx.music.features import FEATURE_NAMES
from kmidi_mlx.spectocloud.anchors import (
    ANCHOR_COUNT,
    ANCHOR_POSITIONS,
    FAMILIES,
    activations,
    family_peak,
)
from kmidi_mlx.spectocloud.energy import measure_energy


def glow(level: float = 0.7, band: int = 30, **given: float) -> np.ndarray:
    mel = np.zeros((128, 64), np.float32)
    mel[band : band + 6] = level
    features = np.zeros(32, np.float32)
    for name, value in {"pitch_class_0": 1.0, **given}.items():
        features[FEATURE_NAMES.index(name)] = value
    return activations(measure_energy(mel), features)


def family(name: str, values: np.ndarray) -> np.ndarray:
    start = sum(count for other, count in list(FAMILIES.items())[: list(FAMILIES).index(name)])
    return values[start : start + FAMILIES[name]]


def test_five_families_of_fixed_places() -> None:
    assert list(FAMILIES) == ["harmony", "rhythm", "dynamics", "timbre", "texture"]
    assert ANCHOR_POSITIONS.shape == (ANCHOR_COUNT, 3)
    assert np.abs(ANCHOR_POSITIONS).max() <= 1.0
    apart = np.linalg.norm(ANCHOR_POSITIONS[:, None] - ANCHOR_POSITIONS, axis=2)
    assert apart[~np.eye(ANCHOR_COUNT, dtype=bool)].min() > 0.2


def test_silence_is_dark() -> None:
    assert not glow(level=0.0).any()


def test_pitch_class_glows() -> None:
    heard = family("harmony", glow(pitch_class_0=0.4, pitch_class_7=0.4, pitch_class_4=0.2))
    assert heard[0] == heard[7] == heard.max()
    assert heard[4] < heard[0]
    assert (np.delete(heard, [0, 4, 7]) < 0.05).all()


@pytest.mark.parametrize(
    ("name", "lower", "higher"),
    [
        ("rhythm", {"density": 0.05}, {"density": 0.6}),
        ("texture", {"polyphony": 0.05}, {"polyphony": 0.7}),
        ("timbre", {"band": 5}, {"band": 45}),
        ("dynamics", {"level": 0.42}, {"level": 0.9}),
    ],
)
def test_the_glow_climbs_the_scale(
    name: str, lower: dict[str, float], higher: dict[str, float]
) -> None:
    low, high = (family(name, glow(**given)) for given in (lower, higher))  # type: ignore[arg-type]
    assert low.argmax() < high.argmax()


def test_peak_counts_families_alike() -> None:
    values = np.zeros(ANCHOR_COUNT, np.float32)
    values[:12] = 1.0
    assert family_peak(values) == pytest.approx(0.2)
    assert family_peak(np.ones(ANCHOR_COUNT, np.float32)) == 1.0
