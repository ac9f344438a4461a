from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kmidi_mlx.data.destination import check_destination
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of somebody with music and a manifest."""
    folder = tmp_path / "mine"
    (folder / "songs").mkdir(parents=True)
    (folder / "songs" / "a.mid").write_bytes(b"music")
    (folder / "list.jsonl").write_text("{}\n")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("source", ["", "songs", "songs/a.mid", "list.jsonl"])
def test_a_folder_that_is_or_holds_a_source_is_refused(mine: Path, source: str) -> None:
    (mine.parent / "link").symlink_to(mine)
    for out in (mine, mine.parent / "link"):
        for named in (mine / source, mine.parent / "link" / source):
            with pytest.raises(KmidiError, match="choose another --out"):
                check_destination(out, [named])
    check_destination(mine / "prepared", [mine / source])
    check_destination(mine.parent / "min", [mine / source])


def test_a_link_in_the_folder_is_in_the_folder(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mid").symlink_to(mine / "songs" / "a.mid")
    with pytest.raises(KmidiError, match="holds the source"):
        check_destination(tmp_path / "out", [tmp_path / "out" / "a.mid"])


@pytest.mark.parametrize(
    "name",
    ["manifest.jsonl", "rejected.jsonl", "index.npz", "dataset.json", "shard-00000.npz",
     "tokens-00000.bin"],
)  # fmt: skip
def test_files_of_others_are_not_written_over(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README").write_text("mine")
    check_destination(out, [])
    (out / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(KmidiError, match=f"{name} would be overwritten"):
        prepare_midi([], out, synthetic=1)
    assert contents(tmp_path) == before


def test_the_manifest_that_is_prepared_survives(prepared: ShardReader, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared.folder.parent, tmp_path / "my")
    shutil.rmtree(folder / "out")
    before = contents(folder)
    with pytest.raises(KmidiError, match="holds the source"):
        prepare_midi([folder / "manifest.jsonl"], folder)
    assert contents(folder) == before


@pytest.mark.parametrize("missing", ["dataset.json", "shard-00000.npz", ""])
def test_what_was_prepared_may_be_prepared_again(
    prepared: ShardReader, tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    (folder / missing).unlink() if missing else None
    check_destination(folder, [])


def test_what_a_run_leaves_that_was_killed_early_is_ours(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "tokens-00000.bin").write_bytes(b"")
    check_destination(tmp_path, [])
