"""Shards of clouds and recordings, merged, are what one job makes, byte for byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio import render, write_wav
from kmidi_mlx.command import run
from kmidi_mlx.data.audio_emotion_render import merge_audio_emotion, render_audio_emotion
from kmidi_mlx.data.cloud_prepare import merge_clouds, prepare_clouds
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.cloud_store import CloudStore
from kmidi_mlx.data.share import Share, open_shares
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.prepare import main


def tune(seed: int, seconds: float = 3.0) -> Notes:
    rng = np.random.default_rng(seed)
    onset = np.arange(0.0, seconds - 0.4, 0.25)
    count = len(onset)
    return Notes.build(
        rng.integers(40, 90, count), rng.integers(30, 120, count), onset, onset + 0.4
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def in_this_process(
    function: Callable[[Any], Any], items: Sequence[Any], **_: Any
) -> Iterator[Any]:
    """Stand in for `map_chunks` without its processes, whose start takes most of the time."""
    for item in items:
        yield [item], function([item])


@pytest.fixture(autouse=True, scope="module")
def small_and_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kmidi_mlx.data.cloud_prepare.map_chunks", in_this_process)
        patch.setattr("kmidi_mlx.data.cloud_prepare.CloudStore", lambda out: CloudStore(out, 3))
        yield


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to copy from, by number: three MIDI, one sound, one too short, one of no notes."""
    folder = tmp_path_factory.mktemp("tunes")
    for number in range(3):
        write_midi(tune(number), folder / f"{number}.mid")
    write_wav(folder / "3.wav", render(tune(3), seconds=3.2))
    write_midi(tune(4, 1.0), folder / "4.mid")
    write_midi(Notes.empty(), folder / "5.mid")
    return folder


WORDS: list[dict[str, Any]] = [
    {},
    {"label": "sad"},
    {"valence": 0.2, "arousal": -0.4, "licence": "mine"},
    {"label": "calm", "group": "g", "song": "s"},
]


def collect(folder: Path, tunes: Path, files: list[tuple[int, str, int]]) -> Path:
    """Write files, some with the same name and content, and their manifest; return that."""
    rows = []
    sides = ["train", "val", "train", "test"]
    for number, (which, place, words) in enumerate(files):
        (model,) = tunes.glob(f"{which}.*")
        path = folder / "music" / place / f"{number % 3}{model.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model, path)
        rows.append({"path": str(path), "split": sides[words], **WORDS[words]})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def tried(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except KmidiError as error:
        return str(error)
    return None


def law(
    folder: Path,
    count: int,
    order: random.Random,
    make: Callable[..., Any],
    merge: Callable[..., Any],
) -> None:
    one, many = folder / "one", folder / "many"
    wrong = tried(lambda: make(one))
    numbers = list(range(1, count + 1))
    order.shuffle(numbers)
    for number in numbers:
        make(many, share=Share(number, count))
    said = tried(lambda: merge(open_shares(many), many))
    assert said == (wrong and wrong.replace(str(one), str(many)))
    if wrong is None:
        assert contents(many) == contents(one)


FILES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["a", "b", "b/versions"]), st.integers(0, 3)),
    min_size=1,
    max_size=5,
    unique_by=lambda file: file[1:],
)


@settings(max_examples=6, deadline=None)
@given(FILES, st.integers(1, 4), st.randoms())
def test_merged_clouds_are_what_one_job_makes(
    tunes: Path,
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[int, str, int]],
    count: int,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    manifest = collect(folder, tunes, files)

    def make(out: Path, **share: Any) -> None:
        report = prepare_clouds([manifest], out, samples=2, val_share=0.4, workers=1, **share)
        assert report.complete

    law(folder, count, order, make, merge_clouds)


@settings(max_examples=15, deadline=None)
@given(FILES, st.integers(1, 4), st.booleans(), st.randoms())
def test_merged_recordings_are_what_one_job_makes(
    tunes: Path,
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[int, str, int]],
    count: int,
    with_unlabelled: bool,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    manifest = collect(folder, tunes, [(0 if f[0] == 3 else f[0], *f[1:]) for f in files])
    options: dict[str, Any] = {"seconds": 1.0, "variants": 1, "with_unlabelled": with_unlabelled}

    def make(out: Path, **share: Any) -> None:
        report = render_audio_emotion([manifest], out, workers=1, **options, **share)
        assert report.complete

    law(folder, count, order, make, merge_audio_emotion)


def test_files_of_one_name_and_content_that_cannot_be_rendered(tunes: Path, tmp_path: Path) -> None:
    manifest = collect(tmp_path, tunes, [(5, "a", 1), (0, "c", 1), (0, "d", 1), (5, "b", 1)])
    report = render_audio_emotion([manifest], tmp_path / "out", workers=1, seconds=1.0)
    assert report.complete
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["reason"] for row in rows] == [f"{row['path']} has no notes." for row in rows]
    assert [Path(row["path"]).parent.name for row in rows] == ["a", "b"]


def test_a_stopped_job_goes_on_and_a_lost_song_is_named(tunes: Path, tmp_path: Path) -> None:
    manifest = collect(tmp_path, tunes, [(0, "a", 0), (1, "b", 1), (2, "c", 2), (4, "c", 1)])
    many = tmp_path / "many"

    def make(number: int) -> Any:
        return prepare_clouds([manifest], many, samples=2, workers=1, share=Share(number, 2))

    assert make(1).prepared == 2
    assert (make(1).prepared, make(2).prepared) == (0, 2)
    # what cannot be used is tried again every time
    assert make(2).prepared == 1
    with pytest.raises(KmidiError, match="its shards are merged by: kmidi prepare merge "):
        CloudReader(many)
    song = next((many / "shard-00001-of-00002").glob(".songs/*.npz"))
    song.rename(tmp_path / "kept.npz")
    with pytest.raises(KmidiError, match=r"shard-00001-of-00002 is damaged: .*\.mid is not in it"):
        merge_clouds(open_shares(many), many)
    (tmp_path / "kept.npz").rename(song)
    assert run(main, ["merge", str(many)]) == 0
    assert len(CloudReader(many)) == 3


def test_a_merge_of_recordings_that_was_killed_goes_on(tunes: Path, tmp_path: Path) -> None:
    manifest = collect(tmp_path, tunes, [(0, "a", 1), (1, "b", 1), (2, "c", 1)])
    one, many = tmp_path / "one", tmp_path / "many"
    render_audio_emotion([manifest], one, workers=1, seconds=1.0)
    for number in (1, 2):
        share = Share(number, 2)
        render_audio_emotion([manifest], many, workers=1, seconds=1.0, share=share)

    def killed(files: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_audio_emotion(open_shares(many), many, killed)
    assert len(list((many / "audio").iterdir())) == 1
    merge_audio_emotion(open_shares(many), many)
    assert contents(many) == contents(one)
