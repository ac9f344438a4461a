from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx import checkpoint, generate
from kmidi_mlx.command import run
from kmidi_mlx.music import encode, read_midi, write_midi
from kmidi_mlx.music.events import event_steps
from kmidi_mlx.music.notes import Notes

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def flags(tiny_run: Path) -> list[str]:
    return ["--checkpoint", str(tiny_run), "--seconds", "3"]


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """Two seconds of music."""
    onset = np.arange(8) * 0.25
    notes = Notes.build(np.arange(60, 68), np.full(8, 81), onset, onset + 0.2)
    write_midi(notes, tmp_path / "prompt.mid")
    return tmp_path / "prompt.mid"


def complaint(capsys: Captured, arguments: list[str]) -> str:
    """Run a command that has to fail and return its one line, the notice left aside."""
    assert run(generate.main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kmidi generate: ")
    return lines[0]


# --- what is written -----------------------------------------------------------------------------


def test_a_piece_of_the_asked_length_is_written(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = tmp_path / "new" / "folder" / "out.mid"
    assert run(generate.main, ["--out", str(out), "--emotion", "happy", *flags]) == 0
    captured = capsys.readouterr()
    notes = read_midi(out)
    assert len(notes) > 0
    assert 0 < notes.duration_seconds <= 3.01
    assert captured.out.startswith(f"wrote {out}: ")
    assert f"{len(notes)} notes, happy, seed 0" in captured.out
    assert len(captured.out.splitlines()) == 1


def test_practice_music_is_owned_up_to_on_stderr(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    assert run(generate.main, ["--out", str(tmp_path / "out.mid"), *flags]) == 0
    captured = capsys.readouterr()
    notices = [line for line in captured.err.splitlines() if line.startswith("note: ")]
    assert len(notices) == 1
    assert "was trained on synthetic practice music" in notices[0]
    assert "synthetic" not in captured.out


def test_real_music_needs_no_notice(
    tmp_path: Path, tiny_run: Path, flags: list[str], capsys: Captured
) -> None:
    arrays, metadata = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    checkpoint.save_arrays(tmp_path / "real.safetensors", arrays, metadata | {"synthetic": False})
    flags[1] = str(tmp_path / "real.safetensors")
    assert run(generate.main, ["--out", str(tmp_path / "out.mid"), *flags]) == 0
    assert "note: " not in capsys.readouterr().err


def test_a_seed_gives_the_same_file_byte_for_byte(tmp_path: Path, flags: list[str]) -> None:
    def written(*more: str) -> bytes:
        assert run(generate.main, ["--out", str(tmp_path / "out.mid"), *flags, *more]) == 0
        return (tmp_path / "out.mid").read_bytes()

    first = written("--seed", "7", "--emotion", "sad")
    assert written("--seed", "7", "--emotion", "sad") == first
    assert written("--seed", "8", "--emotion", "sad") != first
    assert written("--seed", "0") == written()
    # two ways to say the same
    point = ["--valence", "0.5", "--arousal", "-0.25"]
    assert written(*point) == written(*point, "--intensity", str(np.hypot(0.5, 0.25)))


def test_json_is_all_there_is_on_stdout(
    tmp_path: Path, flags: list[str], tiny_run: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.mid"
    arguments = ["--out", str(out), "--json", "--valence", "0.5", "--arousal", "-0.25", *flags]
    assert run(generate.main, [*arguments, "--seed", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    notes = read_midi(out)
    assert result == {
        "out": str(out),
        "seconds": round(notes.duration_seconds, 2),
        "notes": len(notes),
        "events": result["events"],
        "valence": 0.5,
        "arousal": -0.25,
        "seed": 3,
        "checkpoint": str(tiny_run / "best.safetensors"),
        "adapters": [],
        "changes": [],
        "prompt": None,
        "chord": None,
        "key": None,
        "sampling": result["sampling"],
        "synthetic": True,
    }
    assert result["sampling"]["top_k"] == 40
    assert result["events"] > 2 * len(notes)
    assert run(generate.main, ["--out", str(out), "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["valence"] is None


def test_a_prompt_is_continued(tmp_path: Path, flags: list[str], prompt: Path) -> None:
    out = tmp_path / "out.mid"
    assert run(generate.main, ["--out", str(out), "--prompt", str(prompt), *flags]) == 0
    given, whole = encode(read_midi(prompt)), encode(read_midi(out))
    # all but how the last note ends
    assert whole[: len(given) - 2].tolist() == given[:-2].tolist()
    assert len(whole) > len(given)
    seconds = read_midi(out).duration_seconds
    assert 2 < seconds <= read_midi(prompt).duration_seconds + 3.01


def test_a_long_prompt_is_longer_than_the_model_looks_back(
    tmp_path: Path, flags: list[str]
) -> None:
    onset = np.arange(300) * 0.1
    notes = Notes.build(40 + np.arange(300) % 40, np.full(300, 64), onset, onset + 0.05)
    write_midi(notes, tmp_path / "long.mid")
    out = tmp_path / "out.mid"
    arguments = ["--out", str(out), "--prompt", str(tmp_path / "long.mid"), *flags]
    assert run(generate.main, arguments) == 0
    assert len(read_midi(out)) > 300


def test_sampling_flags_change_what_is_drawn(tmp_path: Path, flags: list[str]) -> None:
    def written(*more: str) -> Notes:
        assert run(generate.main, ["--out", str(tmp_path / "out.mid"), *flags, *more]) == 0
        return read_midi(tmp_path / "out.mid")

    narrow = written("--lowest-pitch", "60", "--highest-pitch", "62", "--temperature", "2")
    assert len(narrow)
    assert 60 <= narrow.pitch.min() <= narrow.pitch.max() <= 62
    greedy = [written("--temperature", "0", "--seed", str(seed)) for seed in (1, 2)]
    assert greedy[0].equals(greedy[1])
    written("--chord", "Am", "--key", "A:min", "--guidance-scale", "2", "--emotion", "calm")


def test_an_emotion_that_changes_leaves_the_beginning_alone(
    tmp_path: Path, flags: list[str]
) -> None:
    def written(*more: str) -> list[int]:
        # twenty steps of training teach little of emotions; guidance makes it heard
        arguments = ["--out", str(tmp_path / "out.mid"), "--emotion", "happy", *flags, *more]
        assert run(generate.main, [*arguments, "--guidance-scale", "4"]) == 0
        return [int(event) for event in encode(read_midi(tmp_path / "out.mid"))]

    steady, same = written(), written("--then", "1.5:happy")
    changed = written("--then", "1.5:-0.9,-0.9")
    assert same == steady
    assert changed != steady
    shared = next(i for i, (a, b) in enumerate(zip(steady, changed, strict=False)) if a != b)
    assert event_steps(np.array(steady[:shared]))[-1] >= 100


# --- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--emotion", "hapy"], "did you mean"),
        (["--emotion", "happy", "--valence", "0.5"], "either --emotion or --valence"),
        (["--emotion", "happy", "--intensity", "0.5"], "either --emotion or --valence"),
        (["--valence", "0.5"], "go together"),
        (["--intensity", "0.5"], "--intensity needs"),
        (["--valence", "1.5", "--arousal", "0"], "valence"),
        (["--valence", "nan", "--arousal", "0"], "valence"),
        (["--valence", "much", "--arousal", "0"], "--valence"),
        (["--seconds", "0"], "--seconds 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--seconds", "1e9"], "--seconds"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "1.5"], "--seed"),
        (["--chord", "Hx"], "Hx"),
        (["--key", "C:sharp"], "C:sharp"),
        (["--top-p", "0"], "--top-p"),
        (["--temperature", "nan"], "--temperature"),
        (["--top-k", "2.5"], "--top-k"),
        (["--lowest-pitch", "80", "--highest-pitch", "70"], "--lowest-pitch: 80 is above"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--prompt", "missing.mid"], "missing.mid"),
        (["--then", "20"], "--then '20': write SECONDS:LABEL"),
        (["--then", "nan:sad"], "--then 'nan:sad': write SECONDS:LABEL"),
        (["--then", "-1:sad"], "--then"),
        (["--then", "1:0.5,x"], "--then '1:0.5,x': write SECONDS:LABEL"),
        (["--then", "1:sadd"], "did you mean sad"),
        (["--then", "1:0.5,7"], "arousal"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, flags: list[str], capsys: Captured, arguments: list[str], text: str
) -> None:
    out = tmp_path / "out.mid"
    assert text in complaint(capsys, ["--out", str(out), *flags, *arguments])
    assert not out.exists()


def test_an_unknown_emotion_names_the_nearest(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    line = complaint(capsys, ["--out", str(tmp_path / "o.mid"), *flags, "--emotion", "hapy"])
    assert "hapy" in line
    assert "did you mean happy" in line


def test_the_file_to_write_has_to_be_given(flags: list[str], capsys: Captured) -> None:
    assert "--out" in complaint(capsys, flags)


def test_a_prompt_without_notes_or_music_is_named(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    arguments = ["--out", str(tmp_path / "out.mid"), *flags, "--prompt"]
    write_midi(Notes.empty(), tmp_path / "empty.mid")
    line = complaint(capsys, [*arguments, str(tmp_path / "empty.mid")])
    assert "empty.mid has no notes to continue" in line
    (tmp_path / "text.mid").write_text("not music")
    assert "text.mid" in complaint(capsys, [*arguments, str(tmp_path / "text.mid")])


def test_a_checkpoint_that_cannot_be_used_is_named(
    tmp_path: Path, tiny_run: Path, capsys: Captured
) -> None:
    def attempt(path: Path) -> str:
        arguments = ["--out", str(tmp_path / "out.mid"), "--checkpoint", str(path)]
        return complaint(capsys, arguments)

    assert f"no such checkpoint: {tmp_path / 'missing'}" in attempt(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no such checkpoint: " in attempt(tmp_path / "empty")

    whole = (tiny_run / checkpoint.BEST).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut.safetensors is not a readable" in attempt(tmp_path / "cut.safetensors")
    (tmp_path / "text.safetensors").write_text("best")
    assert "text.safetensors is not a readable" in attempt(tmp_path / "text.safetensors")

    arrays, metadata = checkpoint.load_arrays(tiny_run / checkpoint.BEST)

    def changed(**more: object) -> str:
        checkpoint.save_arrays(tmp_path / "changed.safetensors", arrays, metadata | more)
        return attempt(tmp_path / "changed.safetensors")

    assert "holds 'spectocloud'; a 'midi_generator' is needed" in changed(model="spectocloud")
    assert "does not say how its model is built" in changed(config=None)
    config = metadata["config"]
    wider = config | {"model": config["model"] | {"ffn_dim": 256}}
    line = changed(config=wider)
    assert "does not fit this model; misshapen: " in line
    assert "blocks.0.ffn.down.weight is (64, 128), not (64, 256)" in line
    unknown = config | {"model": config["model"] | {"hiden_dim": 64}}
    assert "changed.safetensors: unknown option model.hiden_dim" in changed(config=unknown)
    del arrays["embedding.weight"]
    assert "missing: embedding.weight" in changed()

    assert "last/state.safetensors does not fit this model" in attempt(tiny_run / checkpoint.LAST)
    assert not (tmp_path / "out.mid").exists()


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mid").mkdir()
    line = complaint(capsys, ["--out", str(tmp_path / "file" / "out.mid"), *flags])
    assert f"cannot make the folder {tmp_path / 'file'}: File exists" in line
    line = complaint(capsys, ["--out", str(tmp_path / "folder.mid"), *flags])
    assert f"--out {tmp_path / 'folder.mid'} is a folder" in line
    line = complaint(capsys, ["--out", str(tmp_path / "out.wav"), *flags])
    assert "give a name that ends in .mid" in line


def test_a_copied_file_is_enough_to_generate(
    tmp_path: Path, tiny_run: Path, flags: list[str]
) -> None:
    shutil.copy(tiny_run / checkpoint.BEST, tmp_path / "alone.safetensors")
    one, two = tmp_path / "one.mid", tmp_path / "two.mid"
    assert run(generate.main, ["--out", str(one), *flags]) == 0
    flags[1] = str(tmp_path / "alone.safetensors")
    assert run(generate.main, ["--out", str(two), *flags]) == 0
    assert one.read_bytes() == two.read_bytes()
