"""Which pieces must stay together, and which side they go to."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.manifest import SPLITS

__all__ = ["assign_splits", "connect"]


def connect(labellings: Iterable[Sequence[Hashable | None]]) -> NDArray[np.int32]:
    """Group pieces that are linked by equal labels, directly or through others (union-find).

    Args:
        labellings: each gives every one of the n pieces a label or None; pieces with equal labels
            in one labelling are linked.

    Returns:
        int32 (n,), group numbers from 0 in the order of first appearance.
    """
    parent: list[int] = []

    def find(piece: int) -> int:
        while parent[piece] != piece:
            parent[piece] = parent[parent[piece]]
            piece = parent[piece]
        return piece

    for labels in labellings:
        parent = parent or list(range(len(labels)))
        first: dict[Hashable, int] = {}
        for piece, label in enumerate(labels):
            if label is not None:
                a, b = find(first.setdefault(label, piece)), find(piece)
                # The earliest piece is the root, so numbers follow first appearance.
                parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(find(i), len(numbers)) for i in range(len(parent))], np.int32
    )


def assign_splits(
    groups: NDArray[np.int32],
    declared: Sequence[str | None],
    songs: Sequence[str],
    *,
    seed: int,
    val_share: float,
) -> NDArray[np.uint8]:
    """Choose a side for every group.

    Where the pieces of a group were declared to different sides, the most protected one wins
    (test, then val, then train): nothing that is trained on is also measured on. A group without a
    word is drawn for `val` by a hash of the seed and one of its songs, so the draw of a song does
    not change when other songs come or go.

    In a small data set the draw may leave a side empty. Then, unless the share is 0, the group of
    the lowest draw goes to `val`; and, unless the share is 1, that of the highest one to `train`,
    always provided that the other side keeps something. So a newcomer changes the side of another
    song only while there are so few that nothing would have been drawn, and only by a lower draw.

    Args:
        groups: int32 (n,) from `connect`.
        declared: (n,) side that a manifest asks for, or None.
        songs: (n,) song names.
        seed: of the draw.
        val_share: share of undeclared groups that go to `val`, 0 to 1.

    Returns:
        uint8 (n,), indices into `manifest.SPLITS`; equal within a group.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    side = np.full(count, -1, np.int64)
    # The voice of a group is its song of lowest hash, which few newcomers will replace.
    voice: dict[int, tuple[int, str]] = {}
    for group, split, song in zip(groups.tolist(), declared, songs, strict=True):
        if split is not None:
            side[group] = max(side[group], SPLITS.index(split))
        elif side[group] < 0:
            candidate = (_hash(song), song)
            voice[group] = min(voice.get(group, candidate), candidate)
    train, val = SPLITS.index("train"), SPLITS.index("val")
    draws = {
        group: _hash(f"{seed}\n{voice[group][1]}") for group in np.flatnonzero(side < 0).tolist()
    }
    for group, draw in draws.items():
        side[group] = val if draw < val_share * 2.0**64 else train
    if draws and val_share > 0.0 and val not in side and (side == train).sum() > 1:
        side[min(draws, key=draws.__getitem__)] = val
    if draws and val_share < 1.0 and train not in side and (side == val).sum() > 1:
        side[max(draws, key=draws.__getitem__)] = train
    return side[groups].astype(np.uint8)


def _hash(text: str) -> int:
    data = text.encode(errors="surrogatepass")  # file names need not be UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
