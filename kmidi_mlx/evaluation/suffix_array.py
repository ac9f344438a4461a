"""A sorted list of all ends of a long sequence: it says where the longest matches stand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST_MATCH", "Matches", "SuffixArray"]

#: Matches are followed up to so many symbols; a longer one counts as this long.
LONGEST_MATCH = 4096

_CHUNK = 16
_Ids = NDArray[np.int64]


class Matches:
    """The longest match at each place of a query.

    Attributes:
        length: int64 (n,), symbols from each place on that stand somewhere in the text.
        part: int64 (n,), in which part of the text one such match stands; -1 without one.
    """

    def __init__(self, length: _Ids, part: _Ids) -> None:
        self.length = length
        self.part = part


class SuffixArray:
    """Finds the longest matches in a text of several parts; no match goes over the end of a part.

    Sorted by prefix doubling (Manber & Myers, "Suffix arrays: a new method for on-line string
    searches", 1993), where only what still ties is sorted again (Larsson & Sadakane, "Faster suffix
    sorting", 2007). Needs about 40 bytes a symbol while it is made, 6 to 8 afterwards.

    Args:
        parts: (length,) whole numbers from 0 to 65,000, each.
        depth: how far matches are followed.
    """

    def __init__(self, parts: list[NDArray[np.integer]], depth: int = LONGEST_MATCH) -> None:
        lengths = np.array([len(part) for part in parts], np.int64)
        self._starts = np.cumsum(lengths + 1) - lengths - 1
        self._depth = depth
        highest = max((int(part.max()) for part in parts if len(part)), default=0) + 1
        self._border = highest + 1
        # from 1 on: what a query is filled up with is 0 and matches nothing
        text = np.full(int(lengths.sum()) + len(parts) + _CHUNK + 1, self._border, np.uint16)
        for start, part in zip(self._starts.tolist(), parts, strict=True):
            text[start : start + len(part)] = np.asarray(part, np.uint16) + 1
        self._text = text
        self._order = _sorted_suffixes(text, len(text) - _CHUNK, self._border, depth)

    def __len__(self) -> int:
        """Return the number of symbols, ends of parts included."""
        return len(self._order)

    def longest_matches(self, query: NDArray[np.integer]) -> Matches:
        """Find the longest match at each place of a query.

        Args:
            query: (n,) whole numbers; those that are nowhere in the text match nothing.
        """
        count = len(query)
        padded = np.zeros(count + self._depth + _CHUNK, np.int64)
        known = (query >= 0) & (query < self._border - 1)
        padded[:count] = np.where(known, query.astype(np.int64) + 1, 0)
        at = np.arange(count)
        low, high = np.zeros(count, np.int64), np.full(count, len(self._order))
        while (low < high).any():
            middle = (low + high) // 2
            place = self._order[np.minimum(middle, len(self._order) - 1)]
            less = self._compare(padded, at, place)[1] & (low < high)
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, np.minimum(high, middle))
        length, part = np.zeros(count, np.int64), np.full(count, -1)
        # the longest match stands beside where the query would be sorted in
        for neighbour in (low - 1, low):
            place = self._order[np.clip(neighbour, 0, len(self._order) - 1)].astype(np.int64)
            common = self._compare(padded, at, place)[0]
            better = common > length
            length = np.where(better, common, length)
            found = np.searchsorted(self._starts, place, side="right") - 1
            part = np.where(better, found, part)
        return Matches(length, part)

    def _compare(
        self, query: _Ids, at: _Ids, place: NDArray[np.integer]
    ) -> tuple[_Ids, NDArray[np.bool_]]:
        """Return (n,) symbols in common, and whether the text is the lesser of the two."""
        common, less = np.zeros(len(at), np.int64), np.zeros(len(at), bool)
        place = place.astype(np.int64)
        step = np.arange(_CHUNK)
        going = np.arange(len(at))
        for begin in range(0, self._depth, _CHUNK):
            if not len(going):
                break
            # past the end of the text everything is a border
            where = np.minimum(place[going, None] + (begin + step), len(self._text) - 1)
            ours = self._text[where].astype(np.int64)
            theirs = query[at[going, None] + (begin + step)]
            differs = ours != theirs
            first = differs.argmax(axis=1)
            some = differs[np.arange(len(going)), first]
            common[going] = begin + np.where(some, first, _CHUNK)
            row = np.arange(len(going))
            less[going] = some & (ours[row, first] < theirs[row, first])
            going = going[~some]
        return np.minimum(common, self._depth), less


def _sorted_suffixes(
    text: NDArray[np.uint16], count: int, border: int, depth: int
) -> NDArray[np.int32]:
    """Return where each end of the text begins, in rising order of their first `depth` symbols.

    Args:
        text: (count + 16,), what it is filled up with is not sorted.
        count: symbols that are.
        border: highest symbol.
        depth: symbols that are looked at. Those behind a border do not matter.
    """
    bits = border.bit_length()
    width = min(_CHUNK, 63 // bits)
    key = np.zeros(count, np.int64)
    for ahead in range(width):
        key <<= bits
        key |= text[ahead : ahead + count]
    order = np.argsort(key).astype(np.int32)
    key = key[order]
    begins = np.append(True, key[1:] != key[:-1])
    del key
    rank = np.empty(count, np.int32)
    rank[order] = _group_starts(begins)
    tied = _tied(begins)
    done = width
    while len(tied) and done < depth:
        place = order[tied]
        key = rank[place].astype(np.int64) << 32
        later = place.astype(np.int64) + done
        inside = later < count
        key[inside] |= rank[later[inside]].astype(np.int64) + 1
        del later, inside
        by_key = np.argsort(key, kind="stable")
        place, key = place[by_key], key[by_key]
        del by_key
        order[tied] = place
        begins = np.append(True, key[1:] != key[:-1])
        del key
        # groups keep their places, so a new group is named by where it begins in the whole order
        rank[place] = tied[_group_starts(begins)]
        tied = tied[_tied(begins)]
        done *= 2
    return order


def _group_starts(begins: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return (n,) the index at which each one's group begins."""
    starts: NDArray[np.int32] = np.maximum.accumulate(
        np.where(begins, np.arange(len(begins), dtype=np.int32), np.int32(0))
    )
    return starts


def _tied(begins: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the indices of those whose group has others."""
    alone = begins & np.append(begins[1:], True)
    return np.flatnonzero(~alone).astype(np.int32)
