from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.camera import Camera, orbit
from kmidi_mlx.spectocloud.picture import draw, write_png

SIZE = (160, 90)
FRONT = Camera(yaw_degrees=0.0, pitch_degrees=0.0)


def cloud(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


def point(
    x: float = 0.0,
    y: float = 0.0,
    z: float = 0.0,
    rgb: tuple[float, float, float] = (1, 1, 1),
    a: float = 1.0,
    size: float = 0.5,
    glow: float = 0.8,
) -> tuple[float, ...]:
    return (x, y, z, *rgb, a, size, glow, 0.35 * (1 + z) + 0.15 * (1 + x))


def drawn(*rows: tuple[float, ...], camera: Camera = FRONT) -> np.ndarray:
    """Draw without guides; light compared with an invisible point's picture."""
    dark = draw(cloud(point(a=0.0, glow=0.0)), camera, SIZE, guides=False).astype(float)
    return draw(cloud(*rows), camera, SIZE, guides=False).astype(float) - dark


def test_a_tall_picture_shows_as_much_as_a_wide_one() -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    (x, y, _), tall = (Camera().project(corners, 320, height) for height in (180, 400))
    assert (tall[0] == x).all()
    assert tall[1] - 200 == pytest.approx(y - 90)
    wide, _, _ = Camera().project(corners, 640, 180)
    assert wide - 320 == pytest.approx(x - 160)
    star = cloud(point(0.3, 0.4, 0.5))
    bright, brighter = (
        (draw(star, FRONT, (320, height), guides=False) > 128).sum() for height in (180, 400)
    )
    assert bright > 20
    assert abs(int(brighter) - int(bright)) <= 0.1 * bright


def test_a_point_is_seen_where_the_camera_projects_it() -> None:
    for x, y, z in ((0.0, 0.0, 0.0), (0.5, 0.4, 0.3), (-0.6, -0.5, -0.8)):
        for camera in (FRONT, Camera(20.0, 10.0)):
            light = drawn(point(x, y, z), camera=camera).sum(axis=2)
            row, column = np.unravel_index(int(light.argmax()), light.shape)
            px, py, _ = camera.project([[x, y, z]], *SIZE)
            assert abs(column + 0.5 - px[0]) <= 1.5
            assert abs(row + 0.5 - py[0]) <= 1.5


def test_near_is_larger_and_brighter() -> None:
    _, _, near = FRONT.project([[0, 0, -1], [0, 0, 0], [0, 0, 1]], *SIZE)
    assert near[0] < near[1] == 1.0 < near[2]
    totals = [drawn(point(z=z)).sum() for z in (-0.9, 0.0, 0.9)]
    assert totals[0] < totals[1] < totals[2]


@pytest.mark.parametrize("what", ["a", "size", "glow"])
def test_light_grows_with_opacity_size_and_glow(what: str) -> None:
    totals = [drawn(point(**{what: value})).sum() for value in (0.1, 0.4, 0.7, 1.0)]  # type: ignore[arg-type]
    assert (np.diff(totals) > 0).all()


def test_colour_and_addition_of_light() -> None:
    red, blue = point(x=-0.3, rgb=(1, 0, 0), glow=0.2), point(x=0.3, rgb=(0, 0, 1), glow=0.2)
    both = drawn(red, blue)
    columns = [int(FRONT.project([row[:3]], *SIZE)[0][0]) for row in (red, blue)]
    left, right = (both[44:48, column].sum(axis=0) for column in columns)
    assert left[0] > 2 * left[2]
    assert right[2] > 2 * right[0]
    assert drawn(red, red).sum() > drawn(red).sum()


def test_points_outside_the_picture_do_no_harm() -> None:
    close = Camera(0.0, 0.0, distance=1.2, zoom=9.0)
    picture = draw(cloud(point(1, 1, 1), point(-1, -1, 1), point()), close, SIZE)
    assert picture.shape == (90, 160, 3)


def test_orbit_swings_within_bounds() -> None:
    cameras = [orbit(seconds) for seconds in np.arange(0.0, 40.0, 0.5)]
    assert max(abs(camera.yaw_degrees) for camera in cameras) <= 30
    steps = np.diff([camera.yaw_degrees for camera in cameras])
    assert 1.0 < np.abs(steps).max() < 3.0
    assert orbit(0.0) == pytest.approx(orbit(0.0))


def test_png_round_trip(tmp_path: Path) -> None:
    picture = draw(cloud(point()), size=SIZE)
    write_png(tmp_path / "cloud.png", picture)
    with Image.open(tmp_path / "cloud.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((5, 9)), "shape"),
        (np.zeros(10), "shape"),
        (np.full((3, 10), np.nan), "not finite"),
    ],
)
def test_wrong_clouds_are_refused(wrong: np.ndarray, told: str) -> None:
    with pytest.raises(KmidiError, match=told):
        draw(wrong)


def test_wrong_sizes_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="pixels"):
        draw(cloud(point()), size=(5, 5))
    with pytest.raises(KmidiError, match="cannot write"):
        write_png(tmp_path / "no" / "cloud.png", np.zeros((16, 16, 3), np.uint8))
