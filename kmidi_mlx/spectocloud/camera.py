"""The camera that looks at a cloud: an orbit, a perspective, and pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ASPECT", "Camera", "orbit", "stage_height"]

#: Time is drawn this much longer than pitch is high.
ASPECT = 1.75

_MIDDLE_Y = -0.04
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A place to look from, always at the middle of the cloud, a little below y = 0.

    Attributes:
        yaw_degrees: around the upright axis; 0 looks along z, positive from the right.
        pitch_degrees: positive looks down from above.
        distance: from the middle of the cloud, in units of half its height.
        zoom: half the height of the picture at distance 1, the larger the closer.
    """

    yaw_degrees: float = -16.0
    pitch_degrees: float = 11.0
    distance: float = 4.6
    zoom: float = 3.6

    def project(
        self, place: ArrayLike, width: int, height: int
    ) -> tuple[_Floats, _Floats, _Floats]:
        """Return where places are seen.

        Args:
            place: (n, 3), x, y, z of the cloud.
            width: of the picture in pixels.
            height: of the picture in pixels.

        Returns:
            x (n,) and y (n,) in pixels from the upper left corner, and how large things look there
            (n,): 1 in the middle of the cloud, more for what is nearer.
        """
        x, y, z = np.asarray(place, np.float64).T
        yaw, pitch = np.radians((self.yaw_degrees, self.pitch_degrees))
        x, y = ASPECT * x, y - _MIDDLE_Y
        right = np.cos(yaw) * x - np.sin(yaw) * z
        forward = np.sin(yaw) * x + np.cos(yaw) * z
        up = np.cos(pitch) * y - np.sin(pitch) * forward
        forward = np.sin(pitch) * y + np.cos(pitch) * forward
        near = self.distance / np.maximum(self.distance - forward, 0.1)
        unit = 0.5 * stage_height(width, height) * self.zoom / self.distance
        return 0.5 * width + unit * right * near, 0.5 * height - unit * up * near, near


def stage_height(width: int, height: int) -> float:
    """Return the height in pixels of the 16:9 stage in a picture: all of it unless it is narrower.

    What is drawn is as large as the stage, so that a square picture shows the whole cloud too.
    """
    return min(float(height), width * 9.0 / 16.0)


def orbit(seconds: float) -> Camera:
    """Return the camera of a film at a time: it swings around the cloud once in 40 s."""
    turn = 2.0 * np.pi * seconds / 40.0
    return Camera(
        yaw_degrees=-24.0 * float(np.cos(turn)), pitch_degrees=11.0 + 6.0 * float(np.sin(turn))
    )
