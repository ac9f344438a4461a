from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kmidi_mlx.audio import compress, mel_spectrogram, read_audio, render, write_wav
from kmidi_mlx.data import cloud_sampling
from kmidi_mlx.data.cloud_prepare import prepare_clouds
from kmidi_mlx.data.cloud_sampling import SamplingOptions, Task, sample_songs, stretch_windows
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.sources import SOUNDING_FILES, list_sources
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import EmotionCurve, Song, advance, begin

OPTIONS = SamplingOptions(samples=4, seed=3, own_emotion=False)


def tune(seed: int, seconds: float = 4.0) -> Notes:
    rng = np.random.default_rng(seed)
    onset = np.arange(0.0, seconds - 0.4, 0.25)
    count = len(onset)
    return Notes.build(
        rng.integers(40, 90, count), rng.integers(30, 120, count), onset, onset + 0.4
    )


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four songs: two MIDI files (one with a version), sound alone, sound with notes and mood."""
    folder = tmp_path_factory.mktemp("songs")
    for number in range(2):
        write_midi(tune(number), folder / f"{number}.mid")
    write_midi(tune(5), folder / "0-v2.mid")
    for number in (2, 3):
        write_wav(folder / f"{number}.wav", render(tune(number), seconds=4.0))
    write_midi(tune(3), folder / "3.midi")
    (folder / "bad.flac").write_bytes(b"no sound")
    rows: list[dict[str, Any]] = [
        {"path": "0.mid", "split": "train", "song": "a"},
        {"path": "0-v2.mid", "split": "train", "song": "a"},
        {"path": "1.mid", "split": "val", "licence": "mine"},
        {"audio": "2.wav"},
        {"audio": "3.wav", "midi": "3.midi", "split": "train", "label": "sad"},
        {"audio": "bad.flac", "split": "train"},
    ]
    write_manifest(folder / "list.jsonl", rows)
    return folder


def prepare(music: Path, out: Path, **options: Any) -> Any:
    return prepare_clouds([music / "list.jsonl"], out, **{"samples": 4, "workers": 1, **options})


@pytest.fixture(scope="module")
def prepared(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "clouds"
    report = prepare(music, out, workers=2)
    assert (report.complete, report.prepared, report.prepared_samples) == (True, 6, 20)
    return out


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_stopped_run_with_one_worker_goes_on_to_the_same_bytes(
    music: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done: list[int] = []
    report = prepare(
        music,
        out,
        on_progress=lambda files, samples: done.append(files),
        stop=lambda: len(done) >= 2,
    )
    assert (report.complete, report.summary, report.prepared) == (False, None, 2)
    with pytest.raises(KmidiError, match=r"no dataset\.json"):
        CloudReader(out)
    (out / ".songs" / ".tmp-killed.npz").write_bytes(b"half")
    (out / ".songs" / "0123.npz").write_bytes(b"damaged")
    again = prepare(music, out)
    assert (again.complete, again.reused, again.prepared) == (True, 2, 4)
    assert contents(out) == contents(prepared)
    assert not (out / ".songs").exists()
    # nothing new but the file that cannot be used
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.np*")}
    last = prepare(music, out)
    assert (last.reused, last.prepared, last.prepared_samples) == (5, 1, 0)
    assert contents(out) == contents(prepared)
    kept = [path for path in before if path.name != "index.npz"]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_the_folder_is_what_is_named_and_songs_are_used_again(
    music: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    two = [music / "1.mid", music / "2.wav"]
    prepare_clouds(two, out, samples=4, workers=1, val_share=0.0)
    report = prepare_clouds(two[1:], out, samples=4, workers=1)
    assert (report.reused, report.prepared, report.left_behind) == (1, 0, 1)
    reader = CloudReader(out)
    assert (len(reader), reader.dataset["songs"]) == (2, 1)
    fresh = tmp_path / "fresh"
    prepare_clouds(two[1:], fresh, samples=4, workers=1)
    assert contents(out) == contents(fresh)
    # another seed, another number of samples and changed files are other samples
    assert prepare_clouds(two[1:], out, samples=4, workers=1, seed=1).reused == 0
    copy = tmp_path / "2.wav"
    copy.write_bytes(two[1].read_bytes())
    prepare_clouds([copy], fresh, samples=4, workers=1)
    os.utime(copy, (1, 1))
    assert prepare_clouds([copy], fresh, samples=4, workers=1).reused == 1
    write_wav(copy, render(tune(9), seconds=4.0))
    assert prepare_clouds([copy], fresh, samples=4, workers=1).reused == 0


def test_songs_are_on_the_sides_they_were_asked_for(music: Path, prepared: Path) -> None:
    reader = CloudReader(prepared)
    rows = [json.loads(line) for line in (prepared / "manifest.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == [
        "0.mid", "0-v2.mid", "1.mid", "2.wav", "3.wav",
    ]  # fmt: skip
    assert reader.song.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert {4, 5} <= set(reader.split("val").tolist())
    assert {0, 1, 2, 3, 8, 9} <= set(reader.split("train").tolist())
    assert len(reader.split("train")) + len(reader.split("val")) == len(reader) == 10
    assert [row["emotion_source"] for row in rows] == ["estimated"] * 3 + ["none", "given"]
    assert reader.dataset["licences"] == ["mine"]
    assert reader.dataset["synthetic"] is False
    with pytest.raises(KmidiError, match="no split"):
        reader.split("dev")


def test_a_sample_costs_at_most_30_kilobytes(tmp_path: Path, music: Path) -> None:
    prepare_clouds([music / "1.mid"], tmp_path / "out", samples=8, workers=1)
    files = [*(tmp_path / "out").glob("clouds-*"), *(tmp_path / "out").glob("mel-*")]
    pairs = CloudReader(tmp_path / "out")
    small = sum(a.nbytes for a in cloud_sampling.Pairs.empty(1).arrays().values())
    assert small / 2 < 29_000
    assert sum(path.stat().st_size for path in files) / (2 * len(pairs)) < 29_000


@pytest.mark.parametrize("name", ["0.mid", "2.wav", "3.wav"])
def test_samples_are_what_the_engine_gives(
    music: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[EmotionCurve] = []
    draw = cloud_sampling.emotion_for

    def spy(*given: Any) -> EmotionCurve:
        used.append(draw(*given))
        return used[-1]

    monkeypatch.setattr(cloud_sampling, "emotion_for", spy)
    sources = list_sources([music / "list.jsonl"], accepted=SOUNDING_FILES)
    (source,) = (each for each in sources if Path(each.path).name == name)
    (sampled,) = sample_songs([Task(source, OPTIONS)])
    pairs = sampled.pairs
    assert pairs is not None
    # The song is shorter than an excerpt: it can be run as a whole.
    midi = {"0.mid": "0.mid", "3.wav": "3.midi"}.get(name)
    notes = None if midi is None else read_midi(music / midi)
    if name.endswith(".wav"):
        seconds, sound = 4.0, read_audio(music / name)
    else:
        assert notes is not None
        seconds = notes.duration_seconds + 1.0
        sound = render(notes, seconds=seconds).mean(axis=1)
    columns = int(seconds * 44_100 / 512)
    song = Song(compress(mel_spectrogram(sound))[:, :columns], notes, used[0])
    state, states = begin(song[0]), []
    for frame in song:
        state = advance(state, frame)
        states.append(state)
    assert len(used) == 1
    windows = stretch_windows(pairs.mel, pairs.shift)
    for row in range(len(pairs)):
        first = round(float(pairs.seconds[row]) * 60.0)
        for number in range(2):
            exact, drawn = song[first + number], states[first + number]
            assert np.abs(windows[row, number] - exact.window).max() <= 0.5001 / 255.0
            np.testing.assert_array_equal(pairs.features[row, number], exact.features)
            difference = np.abs(pairs.clouds[row, number] - drawn.cloud)
            # the storm of the progress differs by the tail of the last column only
            assert difference.max() < 0.02
            assert difference.mean() < 5e-4
            # felt, with inertia, which is not what is asked for
            np.testing.assert_allclose(pairs.emotion[row, number], drawn.emotion, atol=1e-6)
        assert not np.array_equal(pairs.clouds[row, 0], pairs.clouds[row, 1])


def test_excerpts_know_their_place_in_a_long_song(tmp_path: Path) -> None:
    write_midi(tune(4, 40.0), tmp_path / "long.mid")
    (source,) = list_sources([tmp_path / "long.mid"])
    (sampled,) = sample_songs([Task(source, OPTIONS)])
    (again,) = sample_songs([Task(source, SamplingOptions(4, 4, False))])
    assert sampled.pairs is not None
    assert again.pairs is not None
    assert len(sampled.pairs) == 2
    assert sampled.note["id"] != again.note["id"]
    assert not np.array_equal(sampled.pairs.seconds, again.pairs.seconds)
    # Cut out of the whole piece's sound, after the warm-up an excerpt looks the same.
    notes = read_midi(tmp_path / "long.mid")
    mel = compress(mel_spectrogram(render(notes, seconds=notes.duration_seconds).mean(axis=1)))
    windows = stretch_windows(sampled.pairs.mel, sampled.pairs.shift)
    for window, seconds in zip(windows[:, 0], sampled.pairs.seconds.tolist(), strict=True):
        newest = int(seconds * 44_100 / 512 + 1e-3) + 1
        distances = [
            np.abs(window - mel[:, end - 64 : end]).mean() for end in range(newest - 1, newest + 2)
        ]
        assert min(distances) < 0.03


def rejections(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {Path(row["path"]).name: row["reason"] for row in rows}


def test_what_cannot_be_used_is_rejected_with_a_reason(music: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    write_midi(tune(0), folder / "good.mid")
    write_midi(Notes.empty(), folder / "empty.mid")
    write_wav(folder / "silent.wav", np.zeros(200_000, np.float32))
    write_wav(folder / "short.wav", render(tune(1), seconds=1.0))
    soundfile.write(folder / "cut.flac", read_audio(music / "2.wav"), 44_100)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: 9 * len(whole) // 10])
    (folder / "text.mp3").write_bytes(b"not a sound at all")
    (folder / "text.mid").write_bytes(b"not music at all")
    soundfile.write(folder / "nan.wav", np.full(200_000, np.nan), 44_100, subtype="FLOAT")
    prepare_clouds([folder], tmp_path / "out", samples=2, workers=1)
    found = rejections(tmp_path / "out")
    expected = {
        "empty.mid": "no notes",
        "silent.wav": "silent: nothing is louder than -60 dB",
        "short.wav": "too short: 1.00 s, at least 3 s are needed",
        "cut.flac": "",
        "text.mp3": "cannot be read as sound",
        "text.mid": "",
        "nan.wav": "a sample of nan",
    }
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name]
        assert str(folder) not in found[name], "the path stands beside the reason"
    with pytest.raises(KmidiError, match=r"nothing can be prepared: .*silent\.wav: silent"):
        prepare_clouds([folder / "silent.wav"], tmp_path / "other", workers=1)
    for _ in range(2):  # the folder with the reasons is still ours
        with pytest.raises(KmidiError, match=r"none of 2 files can be used; .*silent"):
            prepare_clouds(
                [folder / "silent.wav", folder / "empty.mid"], tmp_path / "none", workers=1
            )


def test_missing_notes_of_a_sound_are_named(music: Path, tmp_path: Path) -> None:
    rows = [{"audio": str(music / "2.wav"), "midi": "gone.mid"}]
    write_manifest(tmp_path / "list.jsonl", rows)
    with pytest.raises(KmidiError, match=r"2\.wav: .*gone\.mid: cannot be read: No such file"):
        prepare_clouds([tmp_path / "list.jsonl"], tmp_path / "out", workers=1)


def test_own_emotions_only(music: Path, tmp_path: Path) -> None:
    prepare(music, tmp_path / "out", emotion="own", samples=2)
    assert rejections(tmp_path / "out").keys() == {"2.wav", "bad.flac"}
    assert rejections(tmp_path / "out")["2.wav"].startswith("no emotion")
    reader = CloudReader(tmp_path / "out")
    sad = reader.pairs(np.flatnonzero(reader.song == reader.song.max())).emotion
    np.testing.assert_allclose(sad[..., 0], -0.7, atol=1e-6)
    np.testing.assert_allclose(sad[..., 1], -0.4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 7}, "--samples 7 has to be an even number"),
        ({"samples": 0}, "--samples 0"),
        ({"emotion": "any"}, "--emotion any has to be one of varied, own"),
        ({"workers": 0}, "--workers 0"),
        ({"val_share": 1.5}, "--val-share"),
    ],
)
def test_wrong_options_are_refused(
    music: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(KmidiError, match=says):
        prepare(music, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_line_without_a_file_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "list.jsonl", [{"split": "train"}])
    with pytest.raises(KmidiError, match=r"line 1: the key 'audio' or 'path' is missing"):
        prepare_clouds([tmp_path / "list.jsonl"], tmp_path / "out")


def test_folders_of_other_kinds_are_left_alone(music: Path, prepared: Path, tmp_path: Path) -> None:
    from kmidi_mlx.data.prepare import prepare_midi

    before = contents(prepared)
    with pytest.raises(KmidiError, match="no data set of this kind"):
        prepare_midi([music / "1.mid"], prepared)
    assert contents(prepared) == before
    prepare_midi([music / "1.mid"], tmp_path / "tokens", workers=1)
    with pytest.raises(KmidiError, match="no data set of this kind"):
        prepare_clouds([music / "1.mid"], tmp_path / "tokens")
