"""Shards that many jobs prepare become, merged, what one job makes, byte for byte."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import random_notes
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.command import run
from kmidi_mlx.data.catalogue import Catalogue
from kmidi_mlx.data.prepare import merge_midi, prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.share import Share, open_shares
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.prepare import main

Bytes = dict[str, bytes]


def contents(folder: Path) -> Bytes:
    """Everything in a folder but its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MIDI files to copy from, by number; 7 is too short, 8 has no notes, 9 is no MIDI."""
    folder = tmp_path_factory.mktemp("tunes")
    for number in range(7):
        write_midi(random_notes(number, 20 + 7 * number), folder / str(number))
    write_midi(random_notes(7, 3), folder / "7")
    write_midi(random_notes(8, 0), folder / "8")
    (folder / "9").write_bytes(b"no music")
    return folder


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    """Let a few pieces fill a token file."""
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(Catalogue, shard_tokens=400)
        patch.setattr("kmidi_mlx.data.prepare.Catalogue", small)
        yield


WORDS: list[dict[str, Any]] = [
    {},
    {"label": "sad"},
    {"valence": 0.2, "arousal": -0.4},
    {"chords": [[0, 2, "C:maj"], [2, 5, "A:min7"]], "key": "C:maj"},
    {"licence": "mine", "group": "g"},
]
# which tune, in which folder, and what a manifest says of it (None: it is not in one)
FILES = st.tuples(
    st.integers(0, 9),
    st.sampled_from(["", "b/", "b/versions/", "c/"]),
    st.none() | st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from(WORDS)),
)


def collect(folder: Path, tunes: Path, files: list[Any]) -> list[Path]:
    """Write files and a manifest of some; return what to name."""
    rows = []
    for number, (tune, place, said) in enumerate(files):
        path = folder / "music" / f"{place}{number % 5}{'' if number < 5 else f' ({number})'}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tunes / str(tune), path)
        if said is not None:
            split, words = said
            rows.append({"path": str(path), "split": split, **words})
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / "music", *([manifest] if rows else [])]


def tried(work: Any) -> Any:
    """What a call raises, or None."""
    try:
        work()
    except KmidiError as error:
        return str(error)
    return None


@settings(max_examples=20, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=10), st.integers(1, 6), st.integers(0, 3), st.randoms())
def test_merged_shards_are_what_one_job_makes(
    tunes: Path,
    tmp_path_factory: pytest.TempPathFactory,
    files: list[Any],
    count: int,
    seed: int,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    sources = collect(folder, tunes, files)
    options: dict[str, Any] = {"workers": 1, "seed": seed, "val_share": 0.3, "licence": "ours"}
    one, many = folder / "one", folder / "many"
    wrong = tried(lambda: prepare_midi(sources, one, **options))
    numbers = list(range(1, count + 1))
    order.shuffle(numbers)
    for number in numbers:
        prepare_midi(sources, many, share=Share(number, count), **options)
    # what one job complains of, the merge does
    said = tried(lambda: merge_midi(open_shares(many), many))
    assert said == (wrong and wrong.replace(str(one), str(many)))
    if wrong is None:
        assert contents(many) == contents(one)
        again = prepare_midi(sources, many, **options)
        assert (again.prepared, again.reused) == (0, len(files))
        assert contents(many) == contents(one)
    shutil.rmtree(folder)


@pytest.fixture
def collection(tunes: Path, tmp_path: Path) -> list[Path]:
    files = [(number % 10, "", None) for number in range(17)]
    return collect(tmp_path, tunes, files)


def make(sources: list[Path], out: Path, *shards: str, **options: Any) -> None:
    for shard in shards:
        prepare_midi(sources, out, share=Share.parse(shard), workers=1, **options)


def test_a_data_set_that_was_there_is_replaced(collection: list[Path], tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    prepare_midi(collection, one, workers=1)
    prepare_midi([collection[0] / "2.mid", collection[0] / "4.mid"], many, workers=1)
    make(collection, many, "1/2", "2/2")
    assert len(ShardReader(many)) == 2  # until everything is merged
    merge_midi(open_shares(many), many)
    assert contents(many) == contents(one)
    # what a merge leaves that is killed at its very end
    shutil.copytree(one, many / ".merged-shard-00001-of-00002")
    with pytest.raises(KmidiError, match="it is a whole data set"):
        open_shares(many)
    assert contents(many) == contents(one)


def test_a_finished_shard_is_not_read_again_and_a_changed_file_is(
    collection: list[Path], tunes: Path, tmp_path: Path
) -> None:
    many, second = tmp_path / "many", Share(2, 3)
    make(collection, many, "1/3", "2/3", "3/3")
    before = contents(many)
    again = prepare_midi(collection, many, share=second, workers=1)
    assert (again.complete, again.prepared, again.summary) == (True, 0, None)
    assert contents(many) == before
    changed = Path(open_shares(many).sources[1].path)
    shutil.copy(tunes / "6", changed)
    assert prepare_midi(collection, many, share=second, workers=1).prepared == 1
    merge_midi(open_shares(many), many)
    prepare_midi(collection, tmp_path / "one", workers=1)
    assert contents(many) == contents(tmp_path / "one")


def test_other_options_or_files_do_not_belong_together(
    collection: list[Path], tunes: Path, tmp_path: Path
) -> None:
    many = tmp_path / "my data"
    make(collection, many, "1/2")
    make(collection, many, "2/2", seed=1)
    with pytest.raises(KmidiError) as caught:
        open_shares(many)
    assert str(caught.value) == (
        "shard 2 of 2 does not belong to shard 1: it has --seed 1, not 0; make it again with: "
        f"kmidi prepare midi {collection[0]} --out '{many}' --seed 0 --val-share 0.05 --shard 2/2"
    )
    shutil.copy(tunes / "1", collection[0] / "new.mid")
    make(collection, many, "2/2")
    with pytest.raises(KmidiError, match="its list of 18 files is another one than that of 17;"):
        open_shares(many)
    make(collection, many, "1/2")
    merge_midi(open_shares(many), many)
    assert ShardReader(many).dataset["rejected"] == 3


def test_a_missing_shard_is_named_with_its_command(collection: list[Path], tmp_path: Path) -> None:
    many = tmp_path / "many"
    make(collection, many, "1/3", "3/3")
    with pytest.raises(KmidiError, match=r"^shard 2 of 3 is missing; make it with: kmidi prepare "):
        open_shares(many)
    make(collection, many, "2/3")
    (many / "shard-00002-of-00003" / "shard.json").unlink()
    with pytest.raises(KmidiError, match=r"^shard 2 of 3 is not complete; make it with: .*2/3$"):
        open_shares(many)
    (many / "shard-00001-of-00003" / "shard.json").unlink()
    with pytest.raises(KmidiError, match=r"^2 of 3 shards are missing or not complete \(1, 2\); "):
        open_shares(many)
    with pytest.raises(KmidiError, match="its shards are merged by: kmidi prepare merge "):
        ShardReader(many)
    make(collection, many, "1/4")
    with pytest.raises(KmidiError, match=r"has shards of 3 and of 4; remove the folders"):
        open_shares(many)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tokens-00000.bin", "is damaged: .* is not in it; make it again with: kmidi prepare midi"),
        ("shard-00000.npz", "is damaged: .* is not in it; make it again with: .* --shard 2/2$"),
        ("sources.jsonl", "sources.jsonl is damaged; prepare that shard again|were changed"),
        ("shard.json", "shard.json is damaged; remove it and prepare that shard again"),
    ],
)
def test_a_damaged_shard_is_named(
    collection: list[Path], tmp_path: Path, name: str, says: str
) -> None:
    many = tmp_path / "many"
    make(collection, many, "1/2", "2/2")
    file = many / "shard-00002-of-00002" / name
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(KmidiError, match=says):
        merge_midi(open_shares(many), many)
    assert not (many / "dataset.json").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5"])
def test_shards_are_counted_from_one(text: str) -> None:
    with pytest.raises(KmidiError, match=f"^--shard {text}: give 1/N to N/N"):
        Share.parse(text)


def test_the_commands(
    collection: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many"
    words = ["midi", *map(str, collection), "--out", str(many), "--workers", "1"]
    for number in (1, 2):
        assert run(main, [*words, "--shard", f"{number}/2"]) == 0
    text = capsys.readouterr().out
    assert f"shard 2 of 2 is ready: {many / 'shard-00002-of-00002'}" in text
    assert f"when all 2 are: kmidi prepare merge {many}" in text
    assert run(main, ["merge", str(many)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 shards merged: 17 files in ")
    assert "3 files rejected" in text
    assert sorted(path.name for path in many.iterdir() if path.is_dir()) == []
    for wrong, says in (
        (["merge", str(many)], "has no shards to merge: it is a whole data set."),
        (["merge", str(tmp_path / "no")], "there is no folder "),
        ([*words, "--shard", "0/2"], "--shard 0/2: give 1/N to N/N, such as 3/16; add 1 to"),
        ([*words, "--shard", "1/2", "--synthetic", "3"], "--synthetic cannot be prepared in"),
    ):
        assert run(main, wrong) == 2
        assert says in capsys.readouterr().err


_MERGER = """
import functools, sys
from pathlib import Path
from kmidi_mlx.data import prepare
from kmidi_mlx.data.catalogue import Catalogue
from kmidi_mlx.data.share import Share, open_shares
if __name__ == "__main__":
    source, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    prepare.Catalogue = functools.partial(Catalogue, shard_tokens=400)
    print("go", flush=True)
    if what == "merge":
        prepare.merge_midi(open_shares(out), out)
    else:
        prepare.prepare_midi([source], out, workers=1, commit_tokens=1, share=Share.parse(what))
"""


def test_jobs_and_merges_may_be_killed_at_any_moment(tunes: Path, tmp_path: Path) -> None:
    sources = collect(tmp_path, tunes, [(number % 10, "", None) for number in range(150)])
    many, script = tmp_path / "many", tmp_path / "merger.py"
    script.write_text(_MERGER)
    rng = random.Random(3)

    def killed(what: str) -> bool:
        command = [sys.executable, str(script), str(sources[0]), str(many), what]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"go\n"
            time.sleep(rng.uniform(0.0, 0.25))
            victim.send_signal(signal.SIGKILL)
            return victim.wait() != 0

    died = killed("1/2")
    died |= killed("2/2")
    make(sources, many, "1/2", "2/2")
    # also in the middle of bringing shards into the data set that was there
    for _ in range(3):
        died |= killed("merge")
        if (many / "dataset.json").exists():
            break
    assert died
    make(sources, many, "1/2", "2/2")  # for a merge that was only killed when all was done
    merge_midi(open_shares(many), many)
    prepare_midi(sources, tmp_path / "one", workers=1)
    assert contents(many) == contents(tmp_path / "one")
