"""Losses between clouds of points, in PyTorch.

The nearest points are found without a gradient, from `|a|² + |b|² - 2ab` as one matrix product a
cloud. The losses are then differences of matched points only. Their gradient is that of the whole
expression, because the minimum over points has the gradient of the point that attains it, but no
(batch, n, m) matrix is kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kmidi_mlx.config import CloudLossConfig
from kmidi_mlx.errors import KmidiError

__all__ = ["CloudLoss", "chamfer", "cloud_losses", "distance_factors", "nearest"]

#: Where the smooth L1 of size, glow and depth turns from a square into a line.
SMOOTH_L1_BETA = 1.0
# Entries of the distance matrices computed at once, a cloud of 1200 at a time; on a GPU more, so
# that it is busy (0.2 GB).
_CHUNK_ENTRIES, _CHUNK_ENTRIES_GPU = 1200 * 1200, 32 * 1200 * 1200
_POSITION, _COLOR, _PROPERTIES = slice(0, 3), slice(3, 7), slice(7, 10)


@dataclass(frozen=True)
class CloudLoss:
    """Parts of a cloud's loss, before they are weighted, each fp32 (batch,).

    Attributes:
        chamfer: Chamfer distance of the positions, see `chamfer`.
        color: mean squared error of r, g, b, a over matched points.
        properties: mean smooth L1 of size, glow, depth over matched points.
        smoothness: how much a point's movement between the two frames of a pair differs from the
            target's: mean over the points of |(p1 - p0) - (t1 - t0)|². Both rows of a pair hold it.
        identity: mean over the points of |p - t|², point i against point i.
    """

    chamfer: Tensor
    color: Tensor
    properties: Tensor
    smoothness: Tensor
    identity: Tensor

    def total(self, weights: CloudLossConfig) -> Tensor:
        """Weighted sum of the parts, fp32 (batch,)."""
        return (
            weights.chamfer * self.chamfer
            + weights.color * self.color
            + weights.properties * self.properties
            + weights.smoothness * self.smoothness
            + weights.identity * self.identity
        )


def distance_factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product holds the squared distances of all points of `a` to those of `b`.

    The factors are sums of numbers with 11 bits each, so that the distances stay good to about
    1e-6 on devices that round what they multiply to TF32.

    Args:
        a: fp32 (batch, n, 3), coordinates below 100 in magnitude.
        b: fp32 (batch, m, 3), likewise.

    Returns:
        fp32 (batch, n, 13) and (batch, 13, m).
    """
    ones_a, ones_b = torch.ones_like(a[..., :1]), torch.ones_like(b[..., :1])
    norm_a, norm_b = torch.sum(a * a, -1, keepdim=True), torch.sum(b * b, -1, keepdim=True)
    (high_a, low_a), (high_b, low_b) = _split(a), _split(-2 * b)
    left = (high_a, low_a, high_a, *_split(norm_a), ones_a, ones_a)
    right = (high_b, high_b, low_b, ones_b, ones_b, *_split(norm_b))
    return torch.cat(left, -1), torch.cat(right, -1).transpose(-1, -2)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two summands of x; the first has 11 bits."""
    high = x.half().float()
    return high, x - high


@torch.no_grad()
def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Find each point's nearest point in the other cloud; nothing flows back through this.

    Of points that are equally near (to about 1e-6) any may be taken. Clouds are worked on one by
    one (small ones several at a time), so that only a few (n, m) matrices are in memory together.

    Args:
        a: (batch, n, 3), coordinates below 100 in magnitude.
        b: (batch, m, 3), likewise.

    Returns:
        int64 (batch, n), the index in `b` of the point nearest to each point of `a`; int64
        (batch, m), the index in `a` of the point nearest to each point of `b`.
    """
    entries = _CHUNK_ENTRIES if a.device.type == "cpu" else _CHUNK_ENTRIES_GPU
    to_b: list[Tensor] = []
    to_a: list[Tensor] = []
    with torch.autocast(a.device.type, enabled=False):
        left, right = distance_factors(a.float(), b.float())
        clouds = max(1, entries // (a.shape[1] * b.shape[1]))
        for start in range(0, a.shape[0], clouds):
            squares = torch.matmul(left[start : start + clouds], right[start : start + clouds])
            to_b.append(torch.argmin(squares, dim=2))
            to_a.append(torch.argmin(squares, dim=1))
    return torch.cat(to_b), torch.cat(to_a)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Chamfer distance of point sets: two means of squared distances, added.

    The mean over the points of `a` of the squared distance to the nearest point of `b`, plus the
    mean over the points of `b` of the squared distance to the nearest point of `a` (Fan, Su and
    Guibas, "A point set generation network", CVPR 2017, with means in place of sums).

    Args:
        a: (batch, n, 3), any float type.
        b: (batch, m, 3).

    Returns:
        fp32 (batch,).
    """
    a, b = a.float(), b.float()
    to_b, to_a = nearest(a, b)
    return _mean_square(a - _points_at(b, to_b)) + _mean_square(_points_at(a, to_a) - b)


def cloud_losses(predicted: Tensor, target: Tensor, weights: CloudLossConfig) -> CloudLoss:
    """Compare predicted clouds with the teacher's.

    Colour and properties are compared between matched points. If `weights.identity` is 0, each
    predicted point is matched with the target point nearest to it and each target point with the
    predicted point nearest to it, and the two directions are averaged, so that no target point is
    forgotten. If it is not 0, point i is to become the teacher's point i, and they are matched.

    Smoothness is measured against the teacher's movement of point i, not against rest, which would
    reward clouds that stand still.

    Args:
        predicted: (batch, n, 10), any float type, columns as in `spectocloud.CHANNELS`; rows 2j
            and 2j + 1 are neighbouring frames.
        target: (batch, n, 10), likewise.
        weights: only asked whether identity is trained; `CloudLoss.total` applies them.

    Raises:
        KmidiError: if the shapes differ or the batch is odd.
    """
    if predicted.shape != target.shape or predicted.ndim != 3 or predicted.shape[0] % 2:
        raise KmidiError(
            f"clouds of shape {tuple(predicted.shape)} cannot be compared with "
            f"{tuple(target.shape)}; "
            "give (batch, points, 10) twice, the batch made of pairs of neighbouring frames."
        )
    predicted, target = predicted.float(), target.float()
    to_target, to_predicted = nearest(predicted[..., _POSITION], target[..., _POSITION])
    forth = predicted - _points_at(target, to_target)
    back = _points_at(predicted, to_predicted) - target
    same = predicted - target
    compared = [same] if weights.identity else [forth, back]
    pairs = same[..., _POSITION].reshape(-1, 2, same.shape[1], 3)
    return CloudLoss(
        chamfer=_mean_square(forth[..., _POSITION]) + _mean_square(back[..., _POSITION]),
        color=_average([_mean_square(error[..., _COLOR]) / 4 for error in compared]),
        properties=_average(
            [torch.mean(_smooth_l1(error[..., _PROPERTIES]), dim=(1, 2)) for error in compared]
        ),
        smoothness=torch.repeat_interleave(_mean_square(pairs[:, 1] - pairs[:, 0]), 2),
        identity=_mean_square(same[..., _POSITION]),
    )


def _points_at(clouds: Tensor, index: Tensor) -> Tensor:
    """Rows (batch, k, channels) of clouds (batch, n, channels) at an index (batch, k)."""
    return torch.gather(clouds, 1, index[..., None].expand(-1, -1, clouds.shape[-1]))


def _mean_square(vectors: Tensor) -> Tensor:
    """Mean over the points of the squared length: (batch, n, channels) to (batch,)."""
    return torch.sum(torch.square(vectors), dim=(1, 2)) / vectors.shape[1]


def _smooth_l1(error: Tensor) -> Tensor:
    """A square for small errors, a line for large ones (Girshick, "Fast R-CNN", ICCV 2015)."""
    size = torch.abs(error)
    square = 0.5 * torch.square(error) / SMOOTH_L1_BETA
    return torch.where(size < SMOOTH_L1_BETA, square, size - 0.5 * SMOOTH_L1_BETA)


def _average(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0]) / len(parts)
