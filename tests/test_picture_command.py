from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmidi_mlx import checkpoint, picture
from kmidi_mlx.audio import render, write_wav
from kmidi_mlx.command import run
from kmidi_mlx.data.song_file import read_song_file
from kmidi_mlx.emotion import encode_many, from_label
from kmidi_mlx.music import read_midi, write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import Song, clouds_at
from kmidi_mlx.spectocloud.picture import draw

Captured = pytest.CaptureFixture[str]

SHIPPED = Path(str(files("kmidi_mlx"))) / "assets" / "pop909" / "447.mid"
SMALL = ["--size", "64x36", "--points", "100"]


@pytest.fixture(scope="module")
def notes() -> Notes:
    """Two seconds of a rising line."""
    onset = np.arange(8) * 0.25
    return Notes.build(np.arange(50, 82, 4), np.full(8, 90), onset, onset + 0.24)


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory, notes: Notes) -> Path:
    path = tmp_path_factory.mktemp("piece") / "piece.mid"
    write_midi(notes, path)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, notes: Notes) -> Path:
    path = tmp_path_factory.mktemp("recording") / "song.wav"
    write_wav(path, render(notes, seconds=2.5))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, as training leaves it, with weights that were only drawn."""
    from mlx.utils import tree_flatten

    from kmidi_mlx.config import SpectocloudConfig, SpectocloudVitConfig
    from kmidi_mlx.config_file import config_to_dict
    from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

    folder = tmp_path_factory.mktemp("network")
    config = SpectocloudConfig(
        model=SpectocloudVitConfig(dims=(64, 64), depths=(1, 1), patch_size=8)
    )
    model = SpectocloudViT(config.model)
    model.initialise(0)
    arrays = {name: np.asarray(value) for name, value in tree_flatten(model.parameters())}
    metadata = {
        "model": "spectocloud",
        "config": config_to_dict(config),
        "step": 9,
        "synthetic": True,
    }
    checkpoint.save_arrays(folder / checkpoint.BEST, arrays, metadata)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def written(out: Path, *arguments: object) -> np.ndarray:
    """Run a command that has to succeed and return its picture."""
    command = [*map(str, arguments), "--out", str(out)]
    assert run(picture.main, [*command, *(SMALL if "--size" not in command else [])]) == 0
    return pixels(out)


def complaint(capsys: Captured, *arguments: object) -> str:
    """Run a command that has to fail and return its one line, the notice left aside."""
    assert run(picture.main, [str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kmidi picture: ")
    return lines[0]


# --- pictures ------------------------------------------------------------------------------------


def test_a_moment_of_a_shipped_piece(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "new" / "moment.png"
    arguments = [str(SHIPPED), "--out", str(out), "--size", "320x180", "--at", "20"]
    assert run(picture.main, arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"wrote {out}: 320x180, 447.mid at 20 of ")
    assert captured.out.endswith(", drawn by the engine\n")
    assert len(captured.out.splitlines()) == 1
    assert captured.err == ""
    shown = pixels(out)
    assert shown.shape == (180, 320, 3)
    assert shown.max() > 200
    assert shown[:10, :10].max() < 40


def test_the_middle_is_shown_and_the_same_command_gives_the_same_bytes(
    tmp_path: Path, piece: Path
) -> None:
    middle = written(tmp_path / "middle.png", piece)
    named = written(tmp_path / "named.png", piece, "--at", read_song_file(piece).seconds / 2)
    first = (tmp_path / "middle.png").read_bytes()
    assert (tmp_path / "named.png").read_bytes() == first
    assert (middle == named).all()
    written(tmp_path / "middle.png", piece)
    assert (tmp_path / "middle.png").read_bytes() == first
    assert (written(tmp_path / "early.png", piece, "--at", "0.3") != middle).any()


def test_the_emotion_is_that_of_the_notes_unless_one_is_given(tmp_path: Path, piece: Path) -> None:
    own = written(tmp_path / "own.png", piece)
    angry = written(tmp_path / "angry.png", piece, "--emotion", "angry")
    valence, arousal = from_label("angry").valence, from_label("angry").arousal
    point = ["--valence", str(valence), "--arousal", str(arousal)]
    assert (written(tmp_path / "point.png", piece, *point) == angry).all()
    assert (own != angry).any()


def test_the_engine_needs_no_framework(tmp_path: Path, piece: Path) -> None:
    code = "import sys; sys.modules['mlx'] = None; from kmidi_mlx.picture import main; "
    command = [sys.executable, "-c", code + "main(sys.argv[1:])", str(piece), *SMALL]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.png")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert pixels(tmp_path / "out.png").shape == (36, 64, 3)


def test_a_sound_file_in_an_emotion(tmp_path: Path, recording: Path, capsys: Captured) -> None:
    sad = written(tmp_path / "sad.png", recording, "--emotion", "sad", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["valence"], result["arousal"]) == (-0.7, -0.4)
    assert (result["song_seconds"], result["at_seconds"]) == (2.5, 1.25)
    assert (result["width"], result["height"], result["points"]) == (64, 36, 100)
    assert result["drawn_by"] == ["engine"]
    happy = written(tmp_path / "happy.png", recording, "--emotion", "happy")
    # blue for what is unpleasant, red for what is pleasant
    assert sad[..., 2].sum() / sad[..., 0].sum() > 1.2 * happy[..., 2].sum() / happy[..., 0].sum()


# --- films ---------------------------------------------------------------------------------------


def test_a_film_of_half_a_second(tmp_path: Path, piece: Path, capsys: Captured) -> None:
    out = tmp_path / "film.gif"
    flags = ["--seconds", "0.5", "--at", "1", "--rate", "10", "--size", "96x54", "--json"]
    assert run(picture.main, [str(piece), "--out", str(out), *flags]) == 0
    captured = capsys.readouterr()
    assert "draw: 5/5 pictures" in captured.err
    result = json.loads(captured.out)
    assert (result["at_seconds"], result["seconds"], result["pictures"]) == (1.0, 0.5, 5)
    with Image.open(out) as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((96, 54), 5)
    first = out.read_bytes()
    assert run(picture.main, [str(piece), "--out", str(out), *flags]) == 0
    assert out.read_bytes() == first


def test_a_film_ends_with_the_song(tmp_path: Path, piece: Path, capsys: Captured) -> None:
    flags = ["--at", "2.7", "--rate", "10", *SMALL]
    for name, more in (("rest", []), ("long", ["--seconds", "60"])):
        out = tmp_path / f"{name}.gif"
        assert run(picture.main, [str(piece), "--out", str(out), *flags, *more]) == 0
        captured = capsys.readouterr()
        assert ("has 0.3 s left" in captured.err.replace("0.30", "0.3")) == bool(more)
        assert "0.3 s of piece.mid from 2.7 s, 3 pictures" in captured.out
    assert (tmp_path / "rest.gif").read_bytes() == (tmp_path / "long.gif").read_bytes()


def test_a_film_that_memory_cannot_hold_is_shorter(
    tmp_path: Path, piece: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "most_pictures", lambda path, size: 2)
    out = tmp_path / "film.webp"
    assert run(picture.main, [str(piece), "--out", str(out), "--rate", "10", *SMALL]) == 0
    captured = capsys.readouterr()
    assert "holds 2 pictures at most, so it ends after 0.20 s" in captured.err
    with Image.open(out) as image:
        assert getattr(image, "n_frames", 1) == 2


@pytest.mark.parametrize("kind", ["piece", "recording"])
def test_an_mp4_film_sounds(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Path = request.getfixturevalue(kind)
    program = tmp_path / "tools" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, soundfile, sys\n"
        "sound = sys.argv[sys.argv.index('-i', sys.argv.index('-i') + 1) + 1]\n"
        "told = [sys.argv, soundfile.info(sound).duration, len(sys.stdin.buffer.read())]\n"
        "open(sys.argv[-1], 'w').write(json.dumps(told))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    out = tmp_path / "film.mp4"
    flags = ["--at", "1", "--seconds", "0.5", "--rate", "10", "--emotion", "calm", *SMALL]
    assert run(picture.main, [str(source), "--out", str(out), *flags]) == 0
    command, seconds, size = json.loads(out.read_text())
    assert size == 5 * 64 * 36 * 3
    # a recording is cut by ffmpeg, what the piano played is cut before
    sound, start = (source, "1.0") if kind == "recording" else (None, "0.0")
    assert command[command.index("-ss") + 1].startswith(start)
    assert seconds == pytest.approx(2.5 if sound else 0.5)
    assert (str(source) in command) == (sound is not None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "tools"]


# --- the network ---------------------------------------------------------------------------------


def test_engine_and_network_side_by_side(
    tmp_path: Path, piece: Path, network: Path, capsys: Captured
) -> None:
    flags = [piece, "--at", "1", "--checkpoint", network]
    both = written(tmp_path / "both.png", *flags, "--compare", "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["drawn_by"] == ["engine", "network"]
    assert (result["step"], result["synthetic"]) == (9, True)
    assert "trained on synthetic practice music" in captured.err
    assert both.shape == (36, result["width"], 3)
    engine = written(tmp_path / "engine.png", piece, "--at", "1")
    drawn = written(tmp_path / "network.png", *flags)
    assert (both[:, :64] == engine).all()
    assert (both[:, -64:] == drawn).all()
    assert (both[:, 64:-64] == 0).all()
    assert (engine != drawn).any()


def test_the_network_is_told_what_the_cloud_feels(
    tmp_path: Path, piece: Path, network: Path
) -> None:
    import mlx.core as mx

    from kmidi_mlx.models.loading import load_spectocloud

    flags = ["--at", "1", "--checkpoint", network]
    shown = written(tmp_path / "network.png", piece, *flags)
    file, model = read_song_file(piece), load_spectocloud(network).model
    song = file.song(file.sound(), None)
    (state,) = clouds_at(song, [60], 100)
    inputs = (
        song[60].window[None],
        song[60].features[None],
        encode_many(*([value] for value in state.emotion)),
    )
    (cloud,) = np.array(model(*map(mx.array, inputs), model.constants(100)))
    assert np.abs(draw(cloud, size=(64, 36)).astype(int) - shown).max() <= 1


def test_films_by_the_network(tmp_path: Path, piece: Path, network: Path) -> None:
    out = tmp_path / "film.gif"
    flags = ["--checkpoint", str(network), "--compare", "--seconds", "0.2", "--rate", "10"]
    assert run(picture.main, [str(piece), "--out", str(out), *flags, *SMALL]) == 0
    with Image.open(out) as image:
        assert getattr(image, "n_frames", 1) == 2
        assert image.size[0] > 2 * 64


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "flags", "words"),
    [
        ("out.jpg", [], ".png"),
        ("out.png", ["--seconds", "3"], "--seconds is for films"),
        ("out.png", ["--rate", "30"], "--rate is for films"),
        ("out.gif", ["--rate", "25"], "divide 60"),
        ("out.gif", ["--seconds", "0"], "--seconds 0"),
        ("out.gif", ["--seconds", "nan"], "--seconds nan"),
        ("out.png", ["--at", "-1"], "--at -1"),
        ("out.png", ["--points", "3001"], "1 to 3000"),
        ("out.png", ["--size", "640"], "--size 640"),
        ("out.png", ["--size", "640x8"], "16 to 8192"),
        ("out.png", ["--emotion", "hapy"], "did you mean happy"),
        ("out.png", ["--emotion", "sad", "--valence", "1"], "not both"),
        ("out.png", ["--arousal", "1"], "go together"),
        ("out.png", ["--intensity", "1"], "needs --valence"),
        ("out.png", ["--at", "500"], "is 2.99 s long"),
        ("out.png", ["--checkpoint", "nowhere"], "no such checkpoint"),
        ("out.png", ["--speed", "2"], "unknown option --speed"),
    ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(
    tmp_path: Path, piece: Path, capsys: Captured, out: str, flags: list[str], words: str
) -> None:
    assert words in complaint(capsys, piece, "--out", tmp_path / out, *flags)
    assert list(tmp_path.iterdir()) == []


def test_wrong_sources_are_one_line(tmp_path: Path, recording: Path, capsys: Captured) -> None:
    silent, odd = tmp_path / "silent.mid", tmp_path / "odd.wav"
    write_midi(Notes.empty(), silent)
    odd.write_bytes(b"no sound")
    out = ["--out", tmp_path / "out.png"]
    assert "no notes" in complaint(capsys, silent, *out)
    assert "cannot be read as sound" in complaint(capsys, odd, *out, "--emotion", "sad")
    assert "no such sound file" in complaint(capsys, tmp_path / "none.wav", *out)
    assert "give --emotion" in complaint(capsys, recording, *out)
    assert not (tmp_path / "out.png").exists()


def test_a_take_is_shown_as_it_was(tmp_path: Path, capsys: Captured) -> None:
    from kmidi_mlx.live.cloud_slot import CloudFrame
    from kmidi_mlx.live.take_files import CloudFile

    folder = tmp_path / "evening"
    folder.mkdir()
    about = {"format": "kmidi take", "version": 1, "seconds": 0.5}
    (folder / "take.json").write_text(json.dumps(about))
    file = CloudFile(folder / "clouds.kmc", 100.0)
    song = Song(notes=read_midi(SHIPPED), emotion=from_label("happy"))
    (seen,) = clouds_at(song[200:240], [30], 50)
    for number in range(30):
        cloud = seen.cloud.astype(np.float16)
        file.add([CloudFrame(number, 100.0 + number / 60, cloud, 0.5, 0.5)])
    file.close()
    still, film = tmp_path / "still.png", tmp_path / "film.webp"
    assert run(picture.main, [str(folder), "--out", str(still), "--size", "64x36"]) == 0
    assert pixels(still).max() > 60
    arguments = [str(folder), "--out", str(film), "--size", "64x36", "--json"]
    assert run(picture.main, arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"] == 15
    assert run(picture.main, [*arguments, "--emotion", "sad"]) == 2
    assert "shown as it was" in capsys.readouterr().err
