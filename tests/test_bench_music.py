"""The music benchmark from end to end, with a model that learnt next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import music
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.overlap import FEATURES
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.midi_file import read_midi, write_midi


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Practice music with songs enough on the held-out side to halve them."""
    folder = tmp_path_factory.mktemp("bench-music") / "data"
    prepare_midi([], folder, synthetic=24, val_share=0.5, workers=1)
    return folder


def judged(tmp_path: Path, *flags: str | Path) -> dict:
    out = tmp_path / "result.json"
    music.main([*map(str, flags), "--work", str(tmp_path / "work"), "--json", str(out)])
    return json.loads(out.read_text())


def test_a_model_is_judged_and_a_second_run_writes_nothing_anew(
    tiny_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--checkpoint", tiny_run, "--data", data, "--seconds", "5")
    short = ("--long-runs", "1", "--long-minutes", "0.2")
    found = judged(tmp_path, *flags, "--pieces", "8", *short)
    shown = capsys.readouterr().out
    assert "overlap, 0-1" in shown
    assert "longest runs shared" in shown

    likeness = found["likeness"]
    assert set(likeness["features"]) == set(FEATURES)
    assert (likeness["pieces"], likeness["splits"]) == (8, music.SPLIT_COUNT)
    for row in likeness["features"].values():
        for name in ("real", "written", "trigram"):
            assert 0 <= row["halves"][name]["overlap"] <= 1 + 1e-9
            assert row["halves"][name]["divergence"] >= 0
    stream = found["long_runs"]["streams"][0]
    assert (stream["name"], stream["seconds"]) == (music.LONG_EMOTIONS[0], 12)
    assert set(stream["faults"]) == {"dead", "looping", "drifting"}
    sets = found["memorisation"]["sets"]
    assert set(sets) >= {"held_out", "written", "long_runs", "trigram", "copied", "higher"}
    assert sets["copied"]["copies"]
    assert not sets["held_out"]["copies"]
    assert found["synthetic"] is True

    files = sorted((tmp_path / "work").rglob("*.mid"))
    assert len(files) == 8 + 8 + 1
    before = {path: path.stat().st_mtime_ns for path in files}
    # as if the bench had been killed before the last piece; then with one more
    lost = next(path for path in files if path.name == "piece-007.mid")
    lost_music = read_midi(lost)
    lost.unlink()
    del before[lost]
    again = judged(tmp_path, *flags, "--pieces", "9", *short)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_midi(lost).equals(lost_music)
    assert again["likeness"]["pieces"] == 9
    assert again["long_runs"] == found["long_runs"]
    # another length is other music
    judged(tmp_path, *flags[:-1], "4", "--pieces", "8", "--long-runs", "0")
    assert len(list((tmp_path / "work").iterdir())) == 4


def test_files_are_judged_and_copies_are_called_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = ShardReader(data)
    folder = tmp_path / "files"
    folder.mkdir()
    for piece in reader.split("train")[:10].tolist():
        write_midi(decode(reader.tokens(piece)), folder / f"{piece}.mid")
    (folder / "broken.mid").write_bytes(b"MThd")
    found = judged(tmp_path, "--midi", folder, "--data", data, "--seconds", "6", "--pieces", "10")
    assert "left out" in capsys.readouterr().err
    written = found["memorisation"]["sets"]["written"]
    assert written["copies"]
    assert written["beyond_events"] == 10
    # what is copied is of the kind of the real music
    like = [row["like_real"] for row in found["likeness"]["features"].values()]
    assert sum(like) > len(like) / 2
    assert found["midi"] == str(folder)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --checkpoint DIR"),
        (["--checkpoint", "x", "--midi", "y"], "or --midi FOLDER"),
        (["--checkpoint", "x", "--pieces", "3"], "--pieces 3: give 8 or more"),
        (["--checkpoint", "x", "--seconds", "nan"], "--seconds nan"),
        (["--checkpoint", "x", "--long-runs", "9"], "--long-runs 9: give 0 to 8"),
        (["--checkpoint", "x", "--long-minutes", "0"], "--long-minutes 0"),
        (["--checkpoint", "x", "--seed", "-1"], "--seed -1"),
        (["--checkpoint", "x", "--pieces", "99"], "pieces of 30 s or more in 'val', 99"),
    ],
)
def test_what_cannot_be_done_is_said(flags: list[str], said: str, data: Path) -> None:
    with pytest.raises(KmidiError, match=said):
        music.main([*flags, "--data", str(data)])
