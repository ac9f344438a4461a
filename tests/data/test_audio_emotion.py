"""What a manifest of recordings says, which side they are on, and the cache of spectrograms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.audio.files import read_audio, write_wav
from kmidi_mlx.audio.hearing import Hearing, SemitoneSettings, hear
from kmidi_mlx.audio.mel import MelSettings
from kmidi_mlx.data.audio_emotion import read_recordings, spectrograms
from kmidi_mlx.emotion import LABELS
from kmidi_mlx.errors import KmidiError

MEL = MelSettings(sample_rate=16_000, n_fft=512, hop_length=160, n_mels=20)
HEARING = Hearing(MEL, SemitoneSettings(16_000, 2048, 160))


def manifest_of(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a manifest whose recordings are noise of their own, where none is there yet."""
    for number, line in enumerate(lines):
        path = folder / line["path"]
        if line["path"] != "missing.wav" and not path.exists():
            noise = np.random.default_rng((number, len(line["path"]))).normal(0, 0.1, 8000)
            write_wav(path, noise.astype(np.float32), 16_000)
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_an_unknown_label_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    file = manifest_of(tmp_path, [{"path": "a.wav", "label": "hapy"}])
    with pytest.raises(KmidiError) as error:
        read_recordings(file)
    assert "line 1" in str(error.value)
    assert "'hapy'" in str(error.value)
    assert all(label in str(error.value) for label in LABELS)
    file = manifest_of(
        tmp_path, [{"path": "a.wav", "label": "happy"}, {"path": "b.wav", "label": "calm"}]
    )
    with pytest.raises(KmidiError, match=r"line 2: the label 'calm' .* known are happy, sad\."):
        read_recordings(file, ("happy", "sad"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"path": "missing.wav", "label": "sad"}, "cannot read .*missing.wav"),
        ({"path": "a.wav"}, "nothing is said about the emotion"),
        ({"path": "a.wav", "valence": 2}, "from -1 to 1"),
        ({"label": "sad", "path": ""}, "not empty"),
    ],
)
def test_what_cannot_be_used_names_its_line(
    tmp_path: Path, line: dict[str, Any], problem: str
) -> None:
    if not line["path"]:
        file = tmp_path / "manifest.jsonl"
        file.write_text('{"path": "a.wav", "label": "sad"}\n{"path": "", "label": "sad"}\n')
        (tmp_path / "a.wav").touch()
    else:
        file = manifest_of(tmp_path, [{"path": "a.wav", "label": "sad"}, line])
    with pytest.raises(KmidiError, match=f"line 2: .*{problem}"):
        read_recordings(file)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(KmidiError, match="no lines"):
        read_recordings(tmp_path / "m.jsonl")


def test_numbers_follow_from_labels_but_not_labels_from_numbers(tmp_path: Path) -> None:
    file = manifest_of(
        tmp_path,
        [
            {"path": "a.wav", "label": "Sad"},
            {"path": "b.wav", "valence": 0.3, "arousal": 0.4},
            {"path": "c.wav", "valence": 0.6, "arousal": 0.8, "intensity": 0.1, "label": "calm"},
            {"path": "d.wav", "arousal": -0.2},
        ],
    )
    found = read_recordings(file)
    assert found.labels == ("calm", "sad")
    assert found.label.tolist() == [1, -1, 0, -1]
    sad = LABELS["sad"]
    expected = [(*sad, np.hypot(*sad)), (0.3, 0.4, 0.5), (0.6, 0.8, 0.1), (0, -0.2, 0)]
    np.testing.assert_allclose(found.numbers, np.array(expected), atol=1e-6)
    assert found.known.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 0]]


def test_songs_stay_together_and_so_do_equal_files(tmp_path: Path) -> None:
    lines = [
        {"path": f"{song}-{take}.wav", "song": song, "label": "sad"}
        for song in range(12)
        for take in range(3)
    ]
    file = manifest_of(tmp_path, lines)
    # one song under another name
    (tmp_path / "0-0.wav").write_bytes((tmp_path / "5-1.wav").read_bytes())
    for seed in range(5):
        found = read_recordings(file, val_share=0.3, seed=seed)
        sides = found.split.reshape(12, 3)
        assert (sides == sides[:, :1]).all()
        assert (sides[0] == sides[5]).all()
        assert 0 < (sides == 1).sum() < 36
    again = read_recordings(file, val_share=0.3, seed=4)
    assert again.split.tolist() == found.split.tolist()


def test_a_declared_side_is_kept_and_a_file_name_is_a_song(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    lines = [{"path": "a.wav", "label": "sad", "split": "test"}]
    lines += [{"path": f"{n}.wav", "label": "sad", "split": "train"} for n in range(9)]
    lines += [{"path": "more/a.flac.wav", "label": "sad"}, {"path": "more/a.wav", "label": "sad"}]
    found = read_recordings(manifest_of(tmp_path, lines), val_share=0.0)
    assert found.on_side("test").tolist() == [0, 11]
    assert found.on_side("train").tolist() == [*range(1, 11)]


def test_cues_are_standardised_by_what_is_trained_on(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"path": f"{n}.wav", "label": "sad", "split": "train", "cues": [n, 10 * n, 7]}
        for n in range(4)
    ]
    lines[2].pop("cues")
    lines += [{"path": "v.wav", "label": "sad", "split": "val", "cues": [100, 100, 100]}]
    raw = read_recordings(manifest_of(tmp_path, lines))
    assert raw.num_cues == 3
    found = [track and track.during(0, 8) for track in raw.standardised_cues().cues]
    assert found[2] is None
    train = np.stack([found[0], found[1], found[3]])
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), [1, 1, 0], atol=1e-6)
    plain = read_recordings(manifest_of(tmp_path, [{"path": "0.wav", "label": "sad"}]))
    assert plain.num_cues == 0
    assert plain.standardised_cues().cues == [None]


def test_cues_alone_are_enough_to_train_but_not_to_be_measured(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"path": "a.wav", "label": "sad", "split": "val", "song": "s"},
        {"path": "b.wav", "label": "sad", "split": "train", "cues": [1, 2]},
        *({"path": f"{n}.wav", "cues": [n, 0]} for n in range(5)),
    ]
    for seed in range(4):
        found = read_recordings(manifest_of(tmp_path, lines), val_share=0.9, seed=seed)
        assert found.unlabelled.tolist() == [False, False] + [True] * 5
        assert found.on_side("train").tolist() == [1, 2, 3, 4, 5, 6]
        assert not found.known[2:].any()
    for line in ({"split": "val"}, {"split": "test"}, {"song": "s"}):
        file = manifest_of(tmp_path, [*lines, {"path": "x.wav", "cues": [1, 1], **line}])
        with pytest.raises(KmidiError, match=r"line 8: .* it can only train, but the song is in"):
            read_recordings(file)


def open_all(
    file: Path, cache: Path, hearing: Hearing = HEARING, **options: Any
) -> tuple[list[list[Any]], int]:
    """Spectrograms of all recordings, and how many had to be read."""
    recordings, started = read_recordings(file), [0]
    found = spectrograms(
        recordings,
        range(len(recordings)),
        hearing,
        cache,
        workers=1,
        on_start=started.append,
        **options,
    )
    return found, sum(started)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return manifest_of(
        tmp_path, [{"path": "a.wav", "label": "sad"}, {"path": "b.wav", "label": "happy"}]
    )


def test_spectrograms_are_those_of_the_sound_and_are_made_once(two: Path) -> None:
    cache = two.parent / "cache"
    found, made = open_all(two, cache)
    assert made == 2
    for name, (mel,) in zip(("a.wav", "b.wav"), found, strict=True):
        sound = read_audio(two.parent / name, 16_000)
        expected = hear(sound, HEARING)
        assert mel.dtype == np.float16
        np.testing.assert_allclose(mel, expected, atol=1e-3)
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert open_all(two, cache)[1] == 0
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == before


def test_other_content_or_settings_are_made_anew_and_damage_is_repaired(two: Path) -> None:
    cache = two.parent / "cache"
    first, _ = open_all(two, cache)
    write_wav(two.parent / "a.wav", np.full(8000, 0.25, np.float32), 16_000)
    changed, made = open_all(two, cache)
    assert made == 1
    assert not np.array_equal(changed[0][0], first[0][0])
    for other in (
        Hearing(MEL),
        Hearing(replace(MEL, n_mels=24)),
        Hearing(replace(MEL, hop_length=80)),
        Hearing(MEL, SemitoneSettings(16_000, 4096, 160)),
    ):
        assert open_all(two, cache, other)[1] == 2
    expected = np.array(changed[0][0])
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    repaired, made = open_all(two, cache)
    assert made == 2
    np.testing.assert_array_equal(repaired[0][0], expected)


def test_variants_are_seeded_and_differ(two: Path) -> None:
    pytest.importorskip("python_stretch")
    one, made = open_all(two, two.parent / "one", variants=2, seed=3)
    again, _ = open_all(two, two.parent / "two", variants=2, seed=3)
    other, _ = open_all(two, two.parent / "one", variants=2, seed=4)
    assert made == 2
    for mine, same, not_same in zip(one, again, other, strict=True):
        assert len(mine) == 3
        for left, right in zip(mine, same, strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(mine[0], not_same[0])
        for variant in (1, 2):
            assert not np.array_equal(mine[variant], mine[0])
            assert not np.array_equal(mine[variant], not_same[variant])
            assert 0.89 < len(mine[variant]) / len(mine[0]) < 1.11
    # only what is missing is made
    assert open_all(two, two.parent / "one", variants=2, seed=3)[1] == 0


def test_equal_recordings_are_read_once_and_a_broken_one_is_named(tmp_path: Path) -> None:
    file = manifest_of(
        tmp_path, [{"path": "a.wav", "label": "sad"}, {"path": "b.wav", "label": "sad"}]
    )
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    found, made = open_all(file, tmp_path / "cache")
    assert made == 1
    np.testing.assert_array_equal(found[0][0], found[1][0])
    (tmp_path / "b.wav").write_bytes(b"no sound at all")
    with pytest.raises(KmidiError, match=r"line 2: .*cannot be read as sound"):
        open_all(file, tmp_path / "cache")
