"""Cues along a recording: what a stretch of time holds, and what a manifest may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.cue_tracks import CueTrack, read_cues, standardise
from kmidi_mlx.data.manifest import ManifestRow, read_manifest
from kmidi_mlx.errors import KmidiError


def rows_of(folder: Path, lines: list[dict[str, Any]]) -> list[ManifestRow]:
    file = folder / "m.jsonl"
    file.write_text("".join(json.dumps({"path": "a", **line}) + "\n" for line in lines))
    return read_manifest(file, required=())


@settings(max_examples=60)
@given(
    st.integers(1, 12),
    st.floats(0.25, 3.0),
    st.floats(0.25, 8.0),
    st.floats(0.0, 40.0),
    st.floats(0.1, 20.0),
)
def test_a_stretch_has_the_mean_of_its_windows(
    windows: int, hop: float, window: float, start: float, seconds: float
) -> None:
    track = CueTrack(np.arange(windows, dtype=np.float32)[:, None], hop, window)
    found = float(track.during(start, start + seconds)[0])
    inside = [
        i
        for i in range(windows)
        if i * hop >= start - 0.499 * hop and i * hop + window <= start + seconds + 0.499 * hop
    ]
    if inside:
        assert inside[0] - 0.51 <= found <= inside[-1] + 0.51
    else:
        assert abs(found - min(start / hop, windows - 1)) <= 0.51


def test_cues_of_the_whole_recording_hold_at_any_time(tmp_path: Path) -> None:
    track = read_cues(rows_of(tmp_path, [{"cues": [1, 2.5]}]))[0]
    assert track is not None
    for start in (0.0, 3.7, 900.0):
        assert track.during(start, start + 8).tolist() == [1, 2.5]


def test_windows_are_read_with_their_times(tmp_path: Path) -> None:
    times = {"cue_hop_s": 2, "cue_window_s": 4.0}
    lines = [{}, {"cues": [[0], [1], [2], [3]], **times}, {"cues": [7]}]
    none, track, whole = read_cues(rows_of(tmp_path, lines))
    assert none is None
    assert track is not None
    assert whole is not None
    assert track.during(2.0, 8.0).tolist() == [1.5]
    assert track.during(2.0, 6.0).tolist() == [1]


@pytest.mark.parametrize("cues", [[1], [1, 2, 3], "ab", [1, True], [1, None], [[1, 2], [1]], []])
def test_wrong_cues_name_their_line(tmp_path: Path, cues: object) -> None:
    with pytest.raises(KmidiError, match="line 2: 'cues' has to be a list of numbers, 2 as in"):
        read_cues(rows_of(tmp_path, [{"cues": [1, 2]}, {"cues": cues}]))
    with pytest.raises(KmidiError, match="line 1: 'cues' has to be a list of numbers, one or more"):
        read_cues(rows_of(tmp_path, [{"cues": []}]))


@pytest.mark.parametrize("hop", [None, 0, -1.0, "1", True])
def test_windows_need_their_times(tmp_path: Path, hop: object) -> None:
    line = {"cues": [[1], [2]], "cue_hop_s": hop, "cue_window_s": 1}
    with pytest.raises(KmidiError, match="line 1: cues of windows need 'cue_hop_s'"):
        read_cues(rows_of(tmp_path, [line]))


def test_windows_of_the_chosen_ones_are_standard_and_the_strange_is_cut() -> None:
    rng = np.random.default_rng(0)
    tracks = [CueTrack(rng.normal(5, [1, 3, 0], (n, 3)).astype(np.float32)) for n in (40, 7, 9)]
    tracks[2].values[0] = 1e6
    found = standardise([*tracks, None], [0, 1, 3])
    assert found[3] is None
    known = np.concatenate([track.values for track in found[:2] if track])
    np.testing.assert_allclose(known.mean(axis=0), 0, atol=2e-2)
    np.testing.assert_allclose(known.std(axis=0), [1, 1, 0], atol=2e-2)
    assert found[2] is not None
    assert found[2].values[0].tolist() == [3, 3, 3]
    assert standardise([None, tracks[0]], [0])[1] is tracks[0]
