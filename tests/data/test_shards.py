from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx.data.manifest import SPLITS, read_manifest
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import encode, first_violation
from kmidi_mlx.music.midi_file import read_midi


def test_tokens_are_those_of_the_files(prepared: ShardReader) -> None:
    rows = read_manifest(prepared.folder / "manifest.jsonl")
    assert len(rows) == len(prepared)
    for piece, row in enumerate(rows):
        tokens = prepared.tokens(piece)
        assert tokens.tolist() == encode(read_midi(row.file("path"))).tolist()
        assert first_violation(tokens) is None
        assert (row.values["tokens"], row.values["split"]) == (
            len(tokens),
            SPLITS[prepared.pieces.split[piece]],
        )


def test_tokens_are_a_read_only_view(prepared: ShardReader) -> None:
    tokens = prepared.tokens(0)
    assert tokens.dtype == np.uint16
    assert not tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_sides_are_disjoint_and_complete(prepared: ShardReader) -> None:
    sides = np.concatenate([prepared.split(name) for name in SPLITS])
    assert sorted(sides.tolist()) == list(range(len(prepared)))
    with pytest.raises(KmidiError, match="train, val, test"):
        prepared.split("dev")


def test_dataset_json_counts_what_is_there(prepared: ShardReader) -> None:
    described = prepared.dataset
    assert described["licences"] == ["test"]
    assert described["synthetic"] is False
    for name, side in described["splits"].items():
        here = prepared.split(name)
        assert side["pieces"] == len(here)
        assert side["tokens"] == sum(len(prepared.tokens(piece)) for piece in here.tolist())
        assert side["songs"] == len(set(prepared.pieces.song[here].tolist()))
    assert described["labels"] == {"estimated": len(prepared) - 3, "rated": 3}


@pytest.fixture
def copy(prepared: ShardReader, tmp_path: Path) -> Path:
    return shutil.copytree(prepared.folder, tmp_path / "copy")


def test_a_truncated_shard_is_one_clear_error(copy: Path) -> None:
    file = copy / "tokens-00000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(KmidiError, match=r"tokens-00000\.bin is cut off: it has \d+ bytes"):
        ShardReader(copy)
    file.unlink()
    with pytest.raises(KmidiError, match=r"cannot read .*tokens-00000\.bin"):
        ShardReader(copy)


def test_another_format_is_refused(copy: Path) -> None:
    file = copy / "dataset.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(KmidiError, match="format 99 cannot be read"):
        ShardReader(copy)
    file.write_text(json.dumps({**described, "kind": "spectocloud"}))
    with pytest.raises(KmidiError, match=r"another model \(spectocloud\).*kmidi prepare midi"):
        ShardReader(copy)
    file.write_text("{")
    with pytest.raises(KmidiError, match="cannot read"):
        ShardReader(copy)


def test_files_of_two_runs_do_not_pass_for_one(copy: Path) -> None:
    file = copy / "dataset.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "tokens": described["tokens"] + 1}))
    with pytest.raises(KmidiError, match="do not belong together"):
        ShardReader(copy)


def test_a_damaged_index_is_one_clear_error(copy: Path) -> None:
    file = copy / "index.npz"
    data = file.read_bytes()
    for damaged in (b"", b"PK", data[: len(data) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(KmidiError, match=r"index\.npz is damaged"):
            ShardReader(copy)


def test_what_is_no_data_set_says_how_to_make_one(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="kmidi prepare midi FOLDER --out DIR"):
        ShardReader(tmp_path / "nothing")
    (copy / "dataset.json").unlink()
    with pytest.raises(KmidiError, match="interrupted; run the same prepare command again"):
        ShardReader(copy)
