from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.manifest import read_manifest, write_manifest
from kmidi_mlx.errors import KmidiError

GOOD = {"path": "a.mid", "split": "train"}


def manifest(folder: Path, *lines: str | dict[str, Any] | bytes) -> Path:
    path = folder / "m.jsonl"
    raw = [
        line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else
        json.dumps(line).encode()
        for line in lines
    ]  # fmt: skip
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_paths_are_relative_to_the_manifest_or_a_root_or_absolute(tmp_path: Path) -> None:
    path = manifest(tmp_path, GOOD, {**GOOD, "path": "/x/b.mid"}, {**GOOD, "path": "../c.mid"})
    here = [row.file("path") for row in read_manifest(path)]
    assert here == [tmp_path / "a.mid", Path("/x/b.mid"), tmp_path.parent / "c.mid"]
    there = [row.file("path") for row in read_manifest(path, root=Path("/root"))]
    assert there == [Path("/root/a.mid"), Path("/x/b.mid"), Path("/c.mid")]


def test_unknown_keys_and_empty_lines_are_kept_and_skipped(tmp_path: Path) -> None:
    path = manifest(tmp_path, GOOD, "", "   ", {**GOOD, "mine": {"deep": [1, "é"]}})
    rows = read_manifest(path)
    assert [row.line for row in rows] == [1, 4]
    assert rows[1].values["mine"] == {"deep": [1, "é"]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"path": "a.mid"', "not JSON"),
        ("[1, 2]", "a JSON list"),
        ({"path": "a.mid"}, "'split' is missing"),
        ({"split": "val"}, "'path' is missing"),
        ({**GOOD, "split": "dev"}, "one of train, val, test"),
        ({**GOOD, "split": None}, "one of train, val, test"),
        ({**GOOD, "path": ""}, "'path'"),
        ({**GOOD, "path": 3}, "'path'"),
        ({**GOOD, "valence": 1.5}, "from -1 to 1"),
        ({**GOOD, "arousal": True}, "from -1 to 1"),
        ('{"path": "a", "split": "val", "valence": NaN}', "from -1 to 1"),
        ({**GOOD, "intensity": -0.1}, "from 0 to 1"),
        ({**GOOD, "label": "hapy"}, "happy"),
        ({**GOOD, "chords": [[0, 1]]}, "list of"),
        ({**GOOD, "chords": [[2, 1, "C"]]}, "start <= end"),
        ({**GOOD, "song": []}, "'song'"),
        ({**GOOD, "scale": "loud"}, "rated or steering"),
        (b'{"path": "\xff", "split": "val"}', "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_errors_name_file_and_line(
    tmp_path: Path, line: str | dict[str, Any] | bytes, says: str
) -> None:
    path = manifest(tmp_path, GOOD, line)
    with pytest.raises(KmidiError) as caught:
        read_manifest(path)
    assert f"{path}, line 2" in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="cannot read the manifest"):
        read_manifest(tmp_path / "none.jsonl")


def test_other_kinds_of_manifests_name_their_own_keys(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"path": "a.wav", "label": "happy"})
    assert len(read_manifest(path, required=("path", "label"))) == 1


def test_a_song_on_two_sides_is_an_error_with_both_lines(tmp_path: Path) -> None:
    rows = [{**GOOD, "song": 7}, GOOD, {**GOOD, "song": "7", "split": "val"}]
    with pytest.raises(KmidiError, match=r"song '7'.*line 1 .*line 3"):
        read_manifest(manifest(tmp_path, *rows))
    # the same name in two data sets is two songs
    rows = [{**GOOD, "song": 7, "dataset": "a"}, {**GOOD, "song": 7, "split": "val"}]
    assert len(read_manifest(manifest(tmp_path, *rows))) == 2


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(texts.map(lambda key: f"x{key}"), values, max_size=4), max_size=5))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, extras: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    rows = [{**GOOD, "path": f"{number}.mid", **extra} for number, extra in enumerate(extras)]
    write_manifest(path, rows)
    assert [dict(row.values) for row in read_manifest(path)] == rows
