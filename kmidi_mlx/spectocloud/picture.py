"""Pictures of a cloud: light added up in numpy, without a display.

Every point is a small Gaussian light; its glow adds a wide soft one. Light adds up in linear
numbers, a bloom spreads what is bright, and a film-like curve brings it to 8 bits. Faint lines show
the registers (a line an octave, C by C) and time. Writing PNG files needs Pillow (MIT-CMU).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.axes import pitch_to_y
from kmidi_mlx.spectocloud.camera import Camera, stage_height
from kmidi_mlx.spectocloud.cloud import CHANNELS

__all__ = ["SIZE", "check_cloud", "draw", "write_png"]

_Floats = NDArray[np.float32]

#: Width and height of a picture in pixels unless others are asked for.
SIZE = (1280, 720)
_HORIZON, _DEPTHS = np.array([0.0030, 0.0040, 0.0105]), np.array([0.0006, 0.0008, 0.0026])
_GUIDE_STRENGTH = np.array([0.22, 0.29, 0.48], np.float32)
_POINT_RADIUS, _GLOW_RADIUS = 0.0105, 0.046
_EXPOSURE = 1.8
_REGISTERS = np.array([-1.0, *pitch_to_y(range(36, 121, 12))])
_TICKS = np.linspace(-1.0, 1.0, 9)
_GOLDEN = 0.6180339887


def check_cloud(cloud: ArrayLike) -> _Floats:
    """Return a cloud as float32 (n, 10) after a look at its numbers.

    Raises:
        KmidiError: for a wrong shape or a number that is not finite.
    """
    array = np.asarray(cloud, np.float32)
    if array.ndim != 2 or array.shape[1] != len(CHANNELS):
        raise KmidiError(f"a cloud has shape (points, {len(CHANNELS)}), got {array.shape}.")
    if not np.isfinite(array).all():
        raise KmidiError("a cloud has a number that is not finite; it cannot be drawn.")
    return array


def draw(
    cloud: ArrayLike,
    camera: Camera | None = None,
    size: tuple[int, int] = SIZE,
    guides: bool = True,
) -> NDArray[np.uint8]:
    """Draw a cloud.

    Args:
        cloud: (n, 10), columns as in `CHANNELS`.
        camera: where to look from; None: a little from the left and above.
        size: width and height in pixels, 16 to 8192.
        guides: whether to show the lines of register and time.

    Returns:
        uint8 (height, width, 3), sRGB.

    Raises:
        KmidiError: for a cloud that cannot be drawn or a size out of range.
    """
    points = check_cloud(cloud)
    width, height = size
    if not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise KmidiError(f"a picture of {width} x {height} pixels is not possible; 16 to 8192 are.")
    camera = camera or Camera()
    light = _background(points, width, height)
    if guides:
        _add_guides(light, camera)
    _add_points(light, points, camera)
    light += _bloom(light)
    # 1 - exp(-x) keeps colours apart where many lights meet; then the sRGB curve.
    shown = 1.0 - np.exp(-_EXPOSURE * light)
    shown = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    # An ordered pattern below one step of 8 bits keeps the dark gradients free of bands.
    pattern = _THRESHOLDS[np.arange(height)[:, None] % 8, np.arange(width) % 8]
    result: NDArray[np.uint8] = np.clip(255.0 * shown + pattern[..., None], 0.0, 255.0).astype(
        np.uint8
    )
    return result


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (height, width, 3) as a PNG file.

    Raises:
        KmidiError: if Pillow is missing or the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise KmidiError("pictures need Pillow: pip install 'kmidi-mlx[cloud]'.") from error
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def _thresholds() -> _Floats:
    """Return the 8 x 8 Bayer matrix in [0, 1)."""
    matrix = np.zeros((1, 1))
    for _ in range(3):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (matrix / 64.0).astype(np.float32)


_THRESHOLDS = _thresholds()


def _background(points: _Floats, width: int, height: int) -> _Floats:
    """Return deep blue-black that takes a breath of the cloud's own colour in the middle."""
    up, across = np.linspace(-1.0, 1.0, height)[:, None], np.linspace(-1.0, 1.0, width)
    sky = _HORIZON + (_DEPTHS - _HORIZON) * np.abs(up)[..., None] ** 0.8
    alpha = points[:, 6:7]
    colour = (points[:, 3:6] * alpha).sum(axis=0) / max(float(alpha.sum()), 1e-6)
    mist = np.exp(-((across / 0.75) ** 2) - (up / 0.7) ** 2)[..., None]
    strength = 0.011 * min(1.0, float(points[:, 8].mean()) / 0.25)
    light: _Floats = (sky + strength * mist * colour).astype(np.float32)
    return light


def _add_guides(light: _Floats, camera: Camera) -> None:
    """Add a line an octave on the back wall, ticks of time on the floor, a frame at "now"."""
    height, width = light.shape[:2]
    step = np.linspace(-1.0, 1.0, 2 * width)
    one = np.ones_like(step)
    recent = 0.2 + 0.8 * ((step + 1.0) / 2.0) ** 2
    lines = [
        *((step, y * one, -one, 0.075 * recent) for y in _REGISTERS),
        *((x * one, -one, step, (0.02 + 0.006 * k) * one) for k, x in enumerate(_TICKS)),
        (one, step, -one, 0.11 * one),
    ]
    x_place, y_place, z_place, strength = (
        np.concatenate(columns) for columns in zip(*lines, strict=True)
    )
    x, y, near = camera.project(np.column_stack([x_place, y_place, z_place]), width, height)
    strength = strength * near**2
    # Each sample lights the four pixels around it; denser samples must not make brighter lines.
    strength *= np.hypot(np.gradient(x), np.gradient(y)).clip(0.0, 3.0) * (
        stage_height(width, height) / 720.0
    )
    column, row = np.floor(x - 0.5).astype(np.intp), np.floor(y - 0.5).astype(np.intp)
    inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
    column, row, strength = column[inside], row[inside], strength[inside]
    right, down = x[inside] - 0.5 - column, y[inside] - 0.5 - row
    lines_of_light = np.zeros(height * width)
    for shift, share in (
        (0, (1.0 - right) * (1.0 - down)),
        (1, right * (1.0 - down)),
        (width, (1.0 - right) * down),
        (width + 1, right * down),
    ):
        lines_of_light += np.bincount(
            row * width + column + shift, share * strength, height * width
        )
    light += lines_of_light.reshape(height, width, 1).astype(np.float32) * _GUIDE_STRENGTH


def _add_points(light: _Floats, points: _Floats, camera: Camera) -> None:
    height, width = light.shape[:2]
    x, y, near = camera.project(points[:, :3], width, height)
    colour, alpha, size, glow, depth = (
        points[:, 3:6] ** 2.2,
        points[:, 6],
        points[:, 7],
        points[:, 8],
        points[:, 9],
    )
    # A level of detail with fewer points draws larger ones; like stars, some are larger anyway.
    fill = float(np.clip(np.sqrt(1200.0 / len(points)), 0.7, 1.6))
    star = 0.62 + 1.0 * ((_GOLDEN * np.arange(len(points))) % 1.0) ** 3
    fade = (0.25 + 0.75 * depth) * alpha
    stage = stage_height(width, height)
    radius = stage * near * fill * star
    hot = np.minimum(1.0, glow)[:, None] ** 1.5
    core = np.maximum(radius * _POINT_RADIUS * (0.10 + 0.90 * size), 0.55)
    heart = colour + 0.6 * hot * (1.0 - colour)
    _splat(light, x, y, 0.45 * core, (2.6 * fade * (0.25 + glow))[:, None] * heart)
    _splat(light, x, y, core, (0.75 * fade * (0.35 + glow))[:, None] * colour)
    halo = np.maximum(stage * near * fill * _GLOW_RADIUS * (0.25 + 0.75 * size), 1.0)
    _splat(light, x, y, halo, (0.075 * fade * glow)[:, None] * colour)


def _splat(
    light: _Floats, x: ArrayLike, y: ArrayLike, radius: ArrayLike, colour: ArrayLike
) -> None:
    """Add a Gaussian light at each place (in pixels), with the radius as standard deviation."""
    height, width = light.shape[:2]
    for cx, cy, deviation, tint in zip(
        np.asarray(x).tolist(),
        np.asarray(y).tolist(),
        np.asarray(radius).tolist(),
        np.asarray(colour, np.float32),
        strict=True,
    ):
        reach = 2.8 * deviation + 1.0
        left, right = max(0, int(cx - reach)), min(width, int(cx + reach) + 1)
        top, bottom = max(0, int(cy - reach)), min(height, int(cy + reach) + 1)
        if left >= right or top >= bottom:
            continue
        scale = -0.5 / (deviation * deviation)
        across = np.exp(
            scale * (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx)) ** 2
        )
        down = np.exp(
            scale * (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - cy)) ** 2
        )
        light[top:bottom, left:right] += (down[:, None] * across)[:, :, None] * tint


def _bloom(light: _Floats) -> _Floats:
    """Return what bright places spill over their surroundings."""
    bright = np.maximum(light - 0.25, 0.0)
    height, width = light.shape[:2]
    small = _shrunk(_shrunk(bright))
    spill = np.zeros_like(small)
    for share, passes in ((0.22, 2), (0.16, 8), (0.10, 24)):
        blurred = small
        for _ in range(3):
            blurred = _box(_box(blurred, passes, 0), passes, 1)
        spill += np.float32(share) * blurred
    return _grown(spill, height, width)


def _shrunk(light: _Floats) -> _Floats:
    height, width = light.shape[0] // 2 * 2, light.shape[1] // 2 * 2
    even = light[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    smaller: _Floats = even.mean(axis=(1, 3))
    return smaller


def _box(light: _Floats, reach: int, axis: int) -> _Floats:
    """Average over 2·reach + 1 places along an axis; the picture's edge goes on."""
    length = light.shape[axis]
    padding = [(0, 0)] * 3
    padding[axis] = (reach + 1, reach)
    total = np.cumsum(np.pad(light, padding, mode="edge"), axis=axis, dtype=np.float64)
    upper = np.take(total, np.arange(length) + 2 * reach + 1, axis=axis)
    lower = np.take(total, np.arange(length), axis=axis)
    return ((upper - lower) / (2 * reach + 1)).astype(np.float32)


def _grown(small: _Floats, height: int, width: int) -> _Floats:
    """Enlarge linearly."""
    for axis, length in ((0, height), (1, width)):
        place = np.clip(
            (np.arange(length) + 0.5) * small.shape[axis] / length - 0.5, 0, small.shape[axis] - 1
        )
        first = np.minimum(place.astype(int), max(0, small.shape[axis] - 2))
        weight = (place - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        following = np.minimum(first + 1, small.shape[axis] - 1)
        a, b = np.take(small, first, axis=axis), np.take(small, following, axis=axis)
        small = a + weight * (b - a)
    return small
