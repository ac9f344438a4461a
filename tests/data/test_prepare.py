from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx.data.manifest import read_manifest, write_manifest
from kmidi_mlx.data.prepare import Report, prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.sources import Source, list_sources
from kmidi_mlx.data.worker_pool import Lost
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.mood import to_steering

Music = Callable[..., Path]
Pieces = dict[str, tuple[str, tuple[int, ...], int]]


def pieces(folder: Path) -> Pieces:
    """Name, side, tokens and number of mood rows of everything in a data set."""
    reader = ShardReader(folder)
    rows = read_manifest(folder / "manifest.jsonl")
    frames = reader.pieces.mood_offset
    return {
        Path(row.values["path"]).name: (
            row.values["split"],
            tuple(reader.tokens(i).tolist()),
            int(frames[i + 1] - frames[i]),
        )
        for i, row in enumerate(rows)
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reasons(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {Path(row["path"]).name: row["reason"] for row in map(json.loads, lines)}


def prepare(*sources: Path, out: Path, **options: object) -> Report:
    return prepare_midi(list(sources), out, workers=1, **options)  # type: ignore[arg-type]


def test_a_folder_is_searched_and_bad_files_do_not_stop_the_run(
    music: Music, tmp_path: Path
) -> None:
    folder = music("a.mid", seed=1).parent
    music("deep/er/b.KAR", seed=2)
    shutil.copy(folder / "a.mid", folder / ".hidden.mid")
    (folder / "notes.txt").write_text("no music")
    (folder / "broken.mid").write_bytes(b"MThd but no more")
    (folder / "lost.mid").symlink_to("nowhere.mid")
    music("empty.mid", seed=3, count=0)
    music("short.mid", seed=3, count=3)
    report = prepare(folder, out=tmp_path / "out")
    assert report.complete
    assert set(pieces(tmp_path / "out")) == {"a.mid", "b.KAR"}
    why = reasons(tmp_path / "out")
    assert set(why) == {"broken.mid", "lost.mid", "empty.mid", "short.mid"}
    assert "no notes" in why["empty.mid"]
    assert "3 notes" in why["short.mid"]
    assert "cannot be read" in why["lost.mid"]
    assert report.summary is not None
    assert (report.summary.rejected, report.summary.duplicates) == (4, 0)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_file_names_need_not_be_utf_8(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    (folder / "a.mid").rename(folder / b"n\xff.mid".decode(errors="surrogateescape"))
    for prepared in (1, 0):
        assert prepare(folder, out=tmp_path / "out").prepared == prepared
        assert set(pieces(tmp_path / "out")) == {"n\udcff.mid"}


@pytest.mark.parametrize("name", ["missing", "missing.jsonl", "missing.mid"])
def test_a_missing_source_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="does not exist"):
        prepare(tmp_path / name, out=tmp_path / "out")


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="nothing to prepare"):
        prepare(out=tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(KmidiError, match=r"none has no \.mid"):
        prepare(tmp_path / "none", out=tmp_path / "out")
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(KmidiError, match="has no lines"):
        prepare(tmp_path / "m.jsonl", out=tmp_path / "out")


def test_if_no_file_can_be_used_the_first_reason_is_told(tmp_path: Path) -> None:
    rows = [{"path": f"far/{name}.mid", "split": "train"} for name in "ab"]
    write_manifest(tmp_path / "m.jsonl", rows)
    out = tmp_path / "out"
    with pytest.raises(KmidiError, match=r"none of 2 files.*far/a\.mid: cannot be read"):
        prepare(tmp_path / "m.jsonl", out=out)
    assert set(reasons(out)) == {"a.mid", "b.mid"}


def test_a_single_bad_file_is_named_once_and_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mid"
    bad.write_bytes(b"no music")
    with pytest.raises(KmidiError) as caught:
        prepare(bad, out=tmp_path / "new" / "out")
    assert str(caught.value) == (
        f"nothing can be prepared: {bad}: the file is not a MIDI file: it has no MThd header."
    )
    assert list(tmp_path.iterdir()) == [bad]
    (tmp_path / "there").mkdir()
    with pytest.raises(KmidiError):
        prepare(bad, out=tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val_share": 2.0}, "--val-share 2.0 has to be from 0 to 1."),
        ({"val_share": float("nan")}, "--val-share nan has to be from 0 to 1."),
        ({"synthetic": -1}, "--synthetic -1 has to be at least 0."),
        ({"seed": -3}, "--seed -3 has to be at least 0."),
    ],
)
def test_an_option_out_of_range_is_named_alone(
    options: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(KmidiError) as caught:
        prepare(tmp_path, out=tmp_path / "out", **options)
    assert str(caught.value) == says


def test_pieces_that_are_no_longer_named_are_counted(music: Music, tmp_path: Path) -> None:
    old = [music(f"old/{name}.mid", seed=number) for number, name in enumerate("abc")]
    new = music("new/d.mid", seed=9).parent
    out = tmp_path / "out"
    assert prepare(old[0].parent, out=out).left_behind == 0
    assert prepare(old[0].parent, new, out=out).left_behind == 0
    assert prepare(new, out=out).left_behind == 3
    assert prepare(new, out=out).left_behind == 0
    # what is gone from the disk was not forgotten
    assert prepare(new, old[0].parent, out=out).left_behind == 0
    old[0].unlink()
    assert prepare(new, out=out).left_behind == 2


def test_a_folder_among_the_sources_is_not_a_source(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    (tmp_path / "link").symlink_to(folder)
    out = tmp_path / "link" / "deep" / "data"
    for _ in range(2):
        assert prepare(folder, out=out, synthetic=2).sources == 3


def test_two_songs_are_a_train_and_a_val_side(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    prepare(folder, out=tmp_path / "out")
    assert {side for side, *_ in pieces(tmp_path / "out").values()} == {"train"}
    music("b.mid", seed=2)
    prepare(folder, out=tmp_path / "out")
    assert sorted(side for side, *_ in pieces(tmp_path / "out").values()) == ["train", "val"]


def test_a_second_run_does_only_what_is_new(music: Music, tmp_path: Path) -> None:
    folder, out = music("a.mid", seed=1).parent, tmp_path / "out"
    music("b.mid", seed=2)
    music("c.mid", seed=3, count=2)
    first = prepare(folder, out=out)
    assert (first.prepared, first.reused) == (3, 0)
    before = contents(out)
    again = prepare(folder, out=out)
    assert (again.prepared, again.reused) == (0, 3)
    assert contents(out) == before

    music("d.mid", seed=4)
    music("b.mid", seed=5)  # other content
    os.utime(folder / "a.mid", ns=(1, 1))  # other time, same content
    third = prepare(folder, out=out)
    assert (third.prepared, third.reused) == (2, 2)
    prepare(folder, out=tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")

    (folder / "a.mid").unlink()
    (folder / "d.mid").unlink()
    assert prepare(folder, out=out).prepared == 0
    assert set(pieces(out)) == {"b.mid"}
    # a shard goes when nothing of it is needed
    music("b.mid", seed=6)
    (folder / "c.mid").unlink()
    prepare(folder, out=out)
    assert len(list(out.glob("tokens-*.bin"))) == len(list(out.glob("shard-*.npz"))) == 1


def test_new_labels_are_a_reason_to_read_again(music: Music, tmp_path: Path) -> None:
    folder, out = music("a.mid", seed=1).parent, tmp_path / "out"
    chords = folder / "chords.txt"
    chords.write_text("0.0\t1.5\tC:maj\n1.5\t9\tA:min\n")
    row = {"path": "a.mid", "split": "train", "chords": "chords.txt", "key": "C:maj"}
    manifest = folder / "m.jsonl"
    for change, prepared in (({}, 1), ({}, 0), ({"key": "A:min"}, 1), ({"title": "x"}, 0)):
        row |= change
        write_manifest(manifest, [row])
        assert prepare(manifest, out=out).prepared == prepared
    chords.write_text("0.0\t1.5\tF:maj\n")
    assert prepare(manifest, out=out).prepared == 1
    index = ShardReader(out).pieces
    assert (index.chord_step.tolist(), index.chord[1].item()) == ([0, 150], 0)
    assert index.key.tolist() == [13 + 9]


@pytest.mark.parametrize(
    ("damage", "prepared"),
    [("tokens-00000.bin", 2), ("shard-00000.npz", 2), ("index.npz", 0), ("dataset.json", 0)],
)
def test_a_damaged_folder_is_mended(
    music: Music, tmp_path: Path, damage: str, prepared: int
) -> None:
    folder, out = music("a.mid", seed=1).parent, tmp_path / "out"
    music("b.mid", seed=2)
    prepare(folder, out=out)
    whole = pieces(out)
    data = (out / damage).read_bytes()
    (out / damage).write_bytes(data[: len(data) // 2])
    assert prepare(folder, out=out).prepared == prepared
    assert pieces(out) == whole


def test_ratings_come_to_the_steering_scale_and_are_flagged(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    for number, name in enumerate(("b", "c", "d")):
        music(f"{name}.mid", seed=2 + number)
    rows = [
        {"path": "a.mid", "split": "train", "valence": 0.2, "arousal": -0.1},
        {"path": "b.mid", "split": "train", "valence": 0.2, "arousal": -0.1, "scale": "steering"},
        {"path": "c.mid", "split": "train", "label": "calm"},
        {"path": "d.mid", "split": "train"},
    ]
    write_manifest(folder / "m.jsonl", rows)
    prepare(folder / "m.jsonl", out=tmp_path / "out")
    made = [row.values for row in read_manifest(tmp_path / "out" / "manifest.jsonl")]
    assert [row["label_source"] for row in made] == ["rated", "given", "given", "estimated"]
    rated = [made[0]["mood_valence"], made[0]["mood_arousal"]]
    assert rated == pytest.approx(to_steering([0.2, -0.1]).tolist(), abs=1e-3)
    assert made[1]["mood_valence"] == pytest.approx(0.2, abs=1e-3)
    assert made[2]["mood_arousal"] == pytest.approx(-0.6, abs=1e-3)


def test_versions_and_duplicates_stay_on_one_side_and_val_stays_clean(
    music: Music, tmp_path: Path
) -> None:
    folder = music("a.mid", seed=1).parent
    music("b.mid", seed=2)
    shutil.copy(folder / "a.mid", folder / "copy of a.mid")
    music("c.mid", seed=3)
    rows = [
        {"path": "a.mid", "split": "train", "song": "a"},
        {"path": "b.mid", "split": "train", "song": "a"},
        {"path": "copy of a.mid", "split": "val", "song": "other"},
        {"path": "c.mid", "split": "train", "song": "c"},
    ]
    write_manifest(folder / "m.jsonl", rows)
    report = prepare(folder / "m.jsonl", out=tmp_path / "out")
    sides = {name: side for name, (side, *_) in pieces(tmp_path / "out").items()}
    assert sides == {"a.mid": "val", "b.mid": "val", "copy of a.mid": "val", "c.mid": "train"}
    assert report.summary is not None
    assert (report.summary.moved, report.summary.duplicates) == (2, 1)


def test_songs_of_files_without_a_manifest(music: Music, tmp_path: Path) -> None:
    for name in ("1/x.mid", "1/versions/x-v2.mid", "1/x (2).mid", "2/x.mid", "1/y.mid"):
        music(name, seed=1)
    songs = {s.path[-12:]: s.song for s in list_sources([tmp_path / "music"])}
    assert len(set(songs.values())) == 3
    assert sorted(songs.values()).count("music/1/x") == 3
    # the folder that is named does not change what a file is called
    one = list_sources([tmp_path / "music" / "2" / "x.mid"])
    assert one[0].song == "2/x"


def test_a_manifest_and_a_folder_may_name_the_same_file(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    music("b.mid", seed=2)
    write_manifest(folder / "m.jsonl", [{"path": "a.mid", "split": "test", "mine": 1}])
    report = prepare(folder, folder / "m.jsonl", out=tmp_path / "out", val_share=0.0)
    assert report.sources == 2
    assert {n: p[0] for n, p in pieces(tmp_path / "out").items()} == {
        "a.mid": "test",
        "b.mid": "train",
    }


def test_the_manifest_that_is_written_can_be_prepared_again(music: Music, tmp_path: Path) -> None:
    folder = music("a.mid", seed=1).parent
    music("sub/b.mid", seed=2)
    prepare(folder, out=tmp_path / "out", val_share=0.5)
    prepare(tmp_path / "out" / "manifest.jsonl", out=tmp_path / "again")
    assert pieces(tmp_path / "again") == pieces(tmp_path / "out")


def test_two_processes_do_not_write_one_folder(music: Music, tmp_path: Path) -> None:
    folder, out = music("a.mid", seed=1).parent, tmp_path / "out"

    def meanwhile(work: str, files: int) -> None:
        with pytest.raises(KmidiError, match="another process"):
            prepare(folder, out=out)

    assert prepare(folder, out=out, on_start=meanwhile).complete


def test_stopping_commits_and_the_next_run_goes_on(music: Music, tmp_path: Path) -> None:
    for number in range(40):
        music(f"{number}.mid", seed=number)
    folder, out = tmp_path / "music", tmp_path / "out"
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    stopped = prepare(folder, out=out, stop=stop)
    assert not stopped.complete
    assert stopped.summary is None
    assert stopped.prepared == 16
    with pytest.raises(KmidiError, match="interrupted"):
        ShardReader(out)
    rest = prepare(folder, out=out)
    assert (rest.prepared, rest.reused) == (24, 16)
    prepare(folder, out=tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_workers_make_the_same_data_set(music: Music, tmp_path: Path) -> None:
    for number in range(33):
        music(f"{number}.mid", seed=number)
    folder = tmp_path / "music"
    prepare(folder, out=tmp_path / "one")
    assert prepare_midi([folder], tmp_path / "two", workers=2).workers == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_file_that_kills_its_worker_is_rejected_and_tried_again(
    music: Music, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = music("a.mid", seed=1).parent, tmp_path / "out"
    music("b.mid", seed=2)

    def deadly(function: Any, items: list[Source], **options: Any) -> Iterator[Any]:
        yield Lost(items[0], -9)
        yield items[1:], function(items[1:])

    with monkeypatch.context() as patch:
        patch.setattr("kmidi_mlx.data.prepare.map_chunks", deadly)
        report = prepare(folder, out=out)
    assert (report.complete, report.worker_deaths, report.prepared) == (True, 1, 2)
    assert reasons(out) == {"a.mid": "the process that read it died (exit code -9)"}
    again = prepare(folder, out=out)
    assert (again.prepared, again.worker_deaths) == (1, 0)
    assert set(pieces(out)) == {"a.mid", "b.mid"}


_VICTIM = """
import sys
from pathlib import Path
from kmidi_mlx.data.prepare import prepare_midi

if __name__ == "__main__":
    prepare_midi([Path(sys.argv[1])], Path(sys.argv[2]), workers=2, commit_tokens=2000,
                 on_start=lambda work, files: print("go", flush=True))
"""


def test_kill_9_at_any_moment_loses_no_committed_work(music: Music, tmp_path: Path) -> None:
    for number in range(160):
        music(f"{number}.mid", seed=number)
    folder, out = tmp_path / "music", tmp_path / "out"
    script = tmp_path / "victim.py"
    script.write_text(_VICTIM)
    rng = random.Random(5)
    for shards in (0, 1, 3, 5):
        victim = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(out)], stdout=subprocess.PIPE
        )
        with victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"go\n"
            committed = 0
            while committed < shards and victim.poll() is None:
                time.sleep(0.005)
                committed = len(list(out.glob(".parts/shard-*.npz")))
            time.sleep(rng.uniform(0.0, 0.05))
            victim.send_signal(signal.SIGKILL)
        assert len(list(out.glob(".parts/shard-*.npz"))) >= committed
    last = prepare(folder, out=out)
    assert last.reused > 0
    prepare(folder, out=tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
