"""Cloud: one frame's points, from what was measured of the sound, the notes and the emotion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud import adhesion
from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT, ANCHOR_POSITIONS, FAMILIES
from kmidi_mlx.spectocloud.energy import Energy, sample_columns, spread_points
from kmidi_mlx.spectocloud.lifeline import lifeline_points
from kmidi_mlx.spectocloud.points import PointSet
from kmidi_mlx.spectocloud.relief import relief
from kmidi_mlx.spectocloud.storm import Storm, bolt

__all__ = ["CHANNELS", "Sight", "anchor_offsets", "draw_cloud"]

#: Columns of a cloud: position in [-1, 1], all others in [0, 1].
CHANNELS = ("x", "y", "z", "r", "g", "b", "a", "size", "glow", "depth")

_Floats = NDArray[np.float32]
_LIFT = 0.50
# Hue turns with the register: bass a little back, treble a little ahead.
_REGISTER_HUE = 0.14
_MIDDLE_C = -0.31
_FAMILY_HUE = np.repeat(
    np.array([0.0, -0.05, 0.05, 0.09, -0.09], np.float32), list(FAMILIES.values())
)
_HALO = 0.055


@dataclass(frozen=True, eq=False)
class Sight:
    """All that a frame shows.

    Attributes:
        energy: of the window.
        features: float32 (32,), MIDI features.
        anchors: float32 (28,), activations in [0, 1].
        emotion: valence, arousal, intensity as the cloud feels them.
        storm: the storm's state.
        progress: place in the song, 0 to 1.
    """

    energy: Energy
    features: _Floats
    anchors: _Floats
    emotion: tuple[float, float, float]
    storm: Storm
    progress: float


def draw_cloud(points: PointSet, sight: Sight) -> _Floats:
    """Compute the cloud that a sight asks for, without its past.

    Args:
        points: the fixed numbers of the points.
        sight: what to show.

    Returns:
        float32 (points.count, 10), columns as in `CHANNELS`.
    """
    channels = np.empty((len(CHANNELS), points.count), np.float32)
    body = _body(points.body_seeds, sight)
    lifeline = _lifeline(len(points.lifeline), sight)
    if sight.storm.flash > 0.0:
        _strike(body, sight, reach=0.16, pull=0.75)
        _strike(lifeline, sight, reach=0.40, pull=0.30)
    channels[:, points.body] = body
    channels[:, points.lifeline] = lifeline
    channels[:, points.anchor] = _anchors(len(points.anchor), sight)
    channels[9] = 0.35 * (1.0 + channels[2]) + 0.15 * (1.0 + channels[0])
    np.clip(channels[:3], -1.0, 1.0, out=channels[:3])
    np.clip(channels[3:], 0.0, 1.0, out=channels[3:])
    return np.ascontiguousarray(channels.T)


def _recency(x: _Floats) -> _Floats:
    """Return 0 for the oldest, 1 for now: the past fades."""
    share = 0.5 * (x + 1.0)
    result: _Floats = share * share
    return result


def _body(seeds: NDArray[np.float64], sight: Sight) -> _Floats:
    valence, arousal, intensity = sight.emotion
    spread = adhesion.spread(arousal)
    u, v, w = seeds.astype(np.float32)
    layer = 2.0 * w - 1.0
    x, y, level = spread_points(sight.energy, u, v)
    recent = _recency(x)
    loud = level * level

    tension = sight.storm.tension
    scatter = 0.06 * spread + 0.08 * tension
    z = relief(x, y, layer, sight.features, scatter) + _LIFT * (level - 0.35)
    # Points stray across pitch too: a crisp line when calm, a spray when excited and charged.
    y = y + (0.015 + 0.05 * tension) * spread * np.sin(40.0 * v + 11.0 * w)

    hues = np.float32(adhesion.hue(valence)) + _REGISTER_HUE * (y - _MIDDLE_C) + 0.04 * loud
    saturation = (0.42 + 0.36 * intensity + 0.07 * (arousal + 1.0)) * (1.0 - 0.5 * loud * recent)
    value = 0.38 + 0.62 * np.sqrt(np.minimum(1.0, 1.15 * level))
    out = np.empty((len(CHANNELS), len(x)), np.float32)
    out[0], out[1], out[2] = x, y, np.tanh(z)
    out[3:6] = adhesion.rgb(hues.astype(np.float32), saturation, value)
    out[6] = adhesion.opacity(arousal) * (0.14 + (0.34 + 0.52 * recent) * level)
    out[7] = 0.10 + 0.50 * level * (0.45 + 0.55 * recent) + 0.16 * loud
    out[8] = 0.03 + loud * (0.25 + (0.75 + 0.4 * sight.energy.attack) * recent)
    return out


def _lifeline(count: int, sight: Sight) -> _Floats:
    valence, arousal, intensity = sight.emotion
    x, y, z, loudness = lifeline_points(sight.energy, count, sight.progress)
    recent = _recency(x)
    out = np.empty((len(CHANNELS), len(x)), np.float32)
    out[0], out[1], out[2] = x, y, np.tanh(z)
    hues = np.full(len(x), adhesion.hue(valence) + 0.06, np.float32)
    saturation = (0.25 + 0.35 * intensity) * (1.0 - 0.5 * recent * loudness)
    out[3:6] = adhesion.rgb(hues, saturation, 0.55 + 0.45 * np.minimum(1.0, 1.5 * loudness))
    bright = np.minimum(1.0, 1.3 * loudness)
    out[6] = adhesion.opacity(arousal) * (0.25 + 0.75 * bright * (0.5 + 0.5 * recent))
    out[7] = 0.22 + 0.26 * bright
    out[8] = 0.12 + bright * (0.45 + 0.43 * recent)
    return out


def anchor_offsets(count: int) -> tuple[NDArray[np.intp], _Floats]:
    """Return which anchor each anchor point belongs to, and where it circles it.

    Args:
        count: how many points, n.

    Returns:
        anchors (n,), and float32 (3, n): offsets in units of the halo, 0 for an anchor's heart.
    """
    anchor = np.arange(count) % ANCHOR_COUNT
    ring = np.arange(count) // ANCHOR_COUNT
    angle = 2.0 * np.pi * (0.618034 * ring + 0.29 * anchor)
    height = 1.6 * ((0.7549 * ring + 0.13 * anchor) % 1.0) - 0.8
    across = np.sqrt(1.0 - height * height)
    around = np.array([across * np.cos(angle), across * np.sin(angle), height])
    return anchor, (np.sqrt(ring / 6.0) * around).astype(np.float32)


def _anchors(count: int, sight: Sight) -> _Floats:
    valence, arousal, intensity = sight.emotion
    anchor, around = anchor_offsets(count)
    glow = sight.anchors[anchor]
    # The first point of an anchor is its heart, the others circle it and move out as it glows.
    offset = _HALO * (0.5 + glow) * adhesion.spread(arousal) * around
    heart = (np.arange(count) < ANCHOR_COUNT).astype(np.float32)
    out = np.empty((len(CHANNELS), count), np.float32)
    out[:3] = ANCHOR_POSITIONS[anchor].T + offset
    hues = np.float32(adhesion.hue(valence)) + _FAMILY_HUE[anchor]
    out[3:6] = adhesion.rgb(hues, (0.2 + 0.3 * intensity) * (1.0 - 0.5 * glow), 0.6 + 0.4 * glow)
    out[6] = (0.10 + 0.35 * heart) * (0.4 + 0.6 * glow) + 0.5 * glow * adhesion.opacity(arousal)
    out[7] = 0.10 + 0.18 * heart + (0.12 + 0.30 * heart) * glow
    out[8] = 0.04 + glow * (0.35 + 0.6 * heart)
    return out


def _strike(channels: _Floats, sight: Sight, reach: float, pull: float) -> None:
    """Light up points within about `reach` of the lightning and pull them to it (in place)."""
    storm = sight.storm
    x = 0.6 * float(ANCHOR_POSITIONS[storm.anchor, 0])
    places = np.array([x], np.float32)
    y = float(sample_columns(places, sight.energy.line)[0])
    way = bolt(storm, (x, y, 0.1))
    place = channels[:3].T
    start, step = way[:-1], way[1:] - way[:-1]
    # (points, segments): how far along each segment the nearest place is
    along = ((place[:, None] - start) * step).sum(axis=2) / (step * step).sum(axis=1)
    nearest = start + np.clip(along, 0.0, 1.0)[:, :, None] * step
    offset = nearest - place[:, None]
    distance = (offset * offset).sum(axis=2)
    segment = distance.argmin(axis=1)
    rows = np.arange(len(place))
    near = storm.flash * np.exp(-distance[rows, segment] / (2.0 * reach**2))
    channels[:3] += pull * near * offset[rows, segment].T
    channels[3:6] += near * (1.0 - channels[3:6])
    channels[6:9] += np.array([[0.8], [0.25], [0.9]], np.float32) * near
