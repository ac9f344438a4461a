"""`python -m kmidi_torch.generate` is `kmidi generate` in another framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx import generate as ours
from kmidi_mlx.command import run
from kmidi_mlx.music import write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_torch import generate as theirs

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]
WITHOUT_MLX = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {blocked!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from kmidi_mlx.command import run
from kmidi_torch.generate import main
sys.exit(run(main, sys.argv[1:]))
"""


def run_without(blocked: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_MLX.format(blocked=blocked)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_commands_write_the_same_file(
    tmp_path: Path, tiny_run: Path, capsys: Captured
) -> None:
    onset = np.arange(8) * 0.25
    notes = Notes.build(np.arange(60, 68), np.full(8, 81), onset, onset + 0.2)
    write_midi(notes, tmp_path / "prompt.mid")
    flags = ["--checkpoint", str(tiny_run), "--seconds", "4", "--seed", "3", "--json"]
    flags += ["--emotion", "happy", "--then", "2:sad", "--guidance-scale", "2"]
    flags += ["--chord", "Am", "--key", "A:min", "--prompt", str(tmp_path / "prompt.mid")]
    results = []
    for name, command in (("mlx", ours.main), ("torch", theirs.main)):
        assert run(command, [*flags, "--out", str(tmp_path / f"{name}.mid")]) == 0
        results.append(json.loads(capsys.readouterr().out))
        del results[-1]["out"]
    assert (tmp_path / "torch.mid").read_bytes() == (tmp_path / "mlx.mid").read_bytes()
    assert results[0] == results[1]
    assert results[0]["notes"] > 20


def test_it_needs_no_mlx(tmp_path: Path, tiny_run: Path) -> None:
    out = tmp_path / "out.mid"
    flags = ["--checkpoint", str(tiny_run), "--seconds", "1", "--out", str(out)]
    done = run_without("mlx", [*flags, "--device", "cpu"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {out}: ")
    assert out.exists()


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_without("torch", ["--out", str(tmp_path / "out.mid")])
    assert done.returncode == 2
    assert done.stderr.strip().endswith("PyTorch is missing: pip install 'kmidi-mlx[torch]'.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--device", "cudaa"], "did you mean cuda?"),
        (["--devise", "cpu"], "did you mean --device?"),
        (["--emotion", "hapy"], "did you mean happy"),
        (["--seconds", "0"], "--seconds 0"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, tiny_run: Path, capsys: Captured, flags: list[str], text: str
) -> None:
    out = tmp_path / "out.mid"
    assert run(theirs.main, ["--out", str(out), "--checkpoint", str(tiny_run), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(
    tmp_path: Path,
    tiny_run: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    out = ["--out", str(tmp_path / "out.mid"), "--checkpoint", str(tiny_run)]
    assert run(theirs.main, [*out, "--device", device]) == 2
    assert f"--device {device}: this PyTorch finds none here" in capsys.readouterr().err


def test_the_help_shows_the_flags_of_both(capsys: Captured) -> None:
    shown = []
    for command in (ours.main, theirs.main):
        with pytest.raises(SystemExit):
            command(["--help"])
        shown.append(capsys.readouterr().out)
    assert "--device" not in shown[0]
    assert "--device {cpu,cuda,mps}" in shown[1]
    assert shown[1].startswith("usage: python -m kmidi_torch.generate ")
    assert all("--then SECONDS:LABEL" in text for text in shown)
