from __future__ import annotations

import numpy as np
import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT
from kmidi_mlx.spectocloud.points import LEVELS_OF_DETAIL, low_discrepancy, point_set


@pytest.mark.parametrize("count", LEVELS_OF_DETAIL)
def test_every_point_has_one_role(count: int) -> None:
    points = point_set(count)
    roles = np.concatenate([points.body, points.lifeline, points.anchor])
    assert sorted(roles.tolist()) == list(range(count))
    assert len(points.anchor) >= ANCHOR_COUNT
    assert len(points.body) / count == pytest.approx(0.71, abs=0.02)


def test_less_detail_is_a_prefix() -> None:
    small, large = point_set(200), point_set(3000)
    for name in ("body", "lifeline", "anchor"):
        few, many = getattr(small, name), getattr(large, name)
        np.testing.assert_array_equal(few, many[: len(few)])
    np.testing.assert_array_equal(
        small.body_seeds, large.body_seeds[:, : small.body_seeds.shape[1]]
    )


def test_seeds_fill_the_cube_evenly() -> None:
    count = 1024
    seeds = low_discrepancy(count)
    for axis, base in zip(seeds, (2, 3, 5), strict=True):
        assert axis.min() > 0.0
        assert axis.max() < 1.0
        # the star discrepancy of random numbers is about 0.03 here
        place = np.sort(axis)
        assert np.abs(place - np.arange(count) / count).max() < 2.0 * base / count
    cells = np.histogram2d(seeds[0], seeds[1], bins=8, range=[[0, 1], [0, 1]])[0]
    assert cells.min() >= 11
    assert cells.max() <= 21


@pytest.mark.parametrize("count", [0, -5, 3001])
def test_count_out_of_range(count: int) -> None:
    with pytest.raises(KmidiError, match="200, 600, 1200"):
        point_set(count)
