"""Musical cues of a recording, such as density and mode, along its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.manifest import ManifestRow
from kmidi_mlx.errors import KmidiError

__all__ = ["CueTrack", "read_cues", "standardise"]

_SMALLEST_SPREAD = 1e-6
# Standardised cues are cut here, so that strange music does not outweigh all other.
_LARGEST_CUE = 3.0


@dataclass(frozen=True, eq=False)
class CueTrack:
    """Cues of windows of a recording.

    Attributes:
        values: float32 (windows, cues), window i starts at i * hop_seconds; at least one.
        hop_seconds: time from window to window, > 0.
        window_seconds: length of a window, > 0.
    """

    values: NDArray[np.float32]
    hop_seconds: float = 1.0
    window_seconds: float = 1.0

    def during(self, start_seconds: float, end_seconds: float) -> NDArray[np.float32]:
        """Return float32 (cues,), the mean of the windows in a stretch, the nearest one at least.

        Args:
            start_seconds: start of the stretch, >= 0.
            end_seconds: its end.
        """
        last = len(self.values) - 1
        first = min(round(start_seconds / self.hop_seconds), last)
        until = min(round((end_seconds - self.window_seconds) / self.hop_seconds), last)
        mean: NDArray[np.float32] = self.values[first : max(first, until) + 1].mean(axis=0)
        return mean


def read_cues(rows: Sequence[ManifestRow]) -> list[CueTrack | None]:
    """Read the cues of a manifest's lines.

    `cues` is a list of numbers for the whole recording, or a list of such lists for windows of
    `cue_window_s` seconds, one every `cue_hop_s` seconds from the start.

    Args:
        rows: the lines.

    Returns:
        The cues of every line, None where it has none.

    Raises:
        KmidiError: naming the line: when cues are not finite numbers, not as many as in the first
            line that has some, or their times are missing.
    """
    found: list[CueTrack | None] = []
    count: int | None = None
    for row in rows:
        cues = row.values.get("cues")
        if cues is None:
            found.append(None)
            continue
        windows = cues if isinstance(cues, list) and cues and isinstance(cues[0], list) else [cues]
        if count is None:
            count = len(windows[0]) if isinstance(windows[0], list) else 0
        if not count or not all(_is_numbers(window, count) for window in windows):
            raise KmidiError(
                f"{row.place}: 'cues' has to be a list of numbers, {count or 'one or more'} as in "
                "the first line that has some, or a list of such lists."
            )
        times: list[Any] = (
            [row.values.get(key) for key in ("cue_hop_s", "cue_window_s")]
            if windows is cues
            else [1.0, 1.0]
        )
        if not all(_is_number(time) and time > 0 for time in times):
            raise KmidiError(
                f"{row.place}: cues of windows need 'cue_hop_s' and 'cue_window_s', seconds above "
                "0; give them, or one list of numbers for the whole recording."
            )
        found.append(CueTrack(np.array(windows, np.float32), *times))
    return found


def standardise(tracks: Sequence[CueTrack | None], chosen: Sequence[int]) -> list[CueTrack | None]:
    """Return the tracks with cues of mean 0 and variance 1 over all windows of the chosen ones.

    What is further than 3 from 0 then is cut to 3.

    Args:
        tracks: of all recordings.
        chosen: numbers of those that give mean and variance.
    """
    known = [track.values for track in (tracks[index] for index in chosen) if track is not None]
    if not known:
        return list(tracks)
    windows = np.concatenate(known)
    mean, spread = windows.mean(axis=0), windows.std(axis=0)
    spread[spread < _SMALLEST_SPREAD] = 1.0
    return [
        track
        and replace(
            track, values=np.clip((track.values - mean) / spread, -_LARGEST_CUE, _LARGEST_CUE)
        )
        for track in tracks
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _is_numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))
