from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_double import COMMIT, HubDouble, Repository

from kmidi_mlx import checkpoint, pull
from kmidi_mlx import hub as hub_module
from kmidi_mlx.checkpoint_model import open_weights
from kmidi_mlx.command import run
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.model_card import card_of
from kmidi_mlx.sharing import read_parts, stage

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def kept(with_adapter: Path, tmp_path: Path, hub: HubDouble) -> Repository:
    """A repository as `kmidi push` leaves it, with files of others beside."""
    folder = tmp_path / "staged"
    folder.mkdir()
    parts = read_parts(with_adapter)
    files = {name: (folder / name).read_bytes() for name in stage(parts, folder)}
    files["README.md"] = card_of(parts, "user/tiny", "mit").encode()
    files |= {"best.pt": b"a pickle", "code/run.py": b"import os", ".gitattributes": b"x"}
    hub.repositories["user/tiny"] = Repository(files)
    return hub.repositories["user/tiny"]


def complaint(capsys: Captured, tmp_path: Path, *words: str, out: str = "out") -> str:
    """Pull, which has to fail in one line and leave nothing; return the line."""
    before = sorted(tmp_path.iterdir())
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / out), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before
    (line,) = captured.err.splitlines()
    return line.removeprefix("kmidi pull: ")


def test_a_pull_brings_what_kmidi_reads_and_says_how_to_use_it(
    kept: Repository, with_adapter: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "deep" / "out"
    assert run(pull.main, ["user/tiny", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"pulled user/tiny at {COMMIT[:12]} into {out}" in said
    assert "licence: mit" in said
    assert "licences of its data: MIT" in said
    assert "practice music" in said
    assert "best.pt" in said
    assert f"use it: kmidi generate --checkpoint {out} " in said
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "best.safetensors", "config.yaml", "hub.json",
        "adapters/mine/adapter.safetensors", "adapters/mine/adapter_config.yaml",
    }  # fmt: skip
    pulled, before = (
        open_weights(folder, MidiGeneratorConfig).arrays for folder in (out, with_adapter)
    )
    assert {n: a.tobytes() for n, a in pulled.items()} == {
        n: a.tobytes() for n, a in before.items()
    }
    origin = json.loads((out / "hub.json").read_text())
    assert (origin["repository"], origin["revision"]) == ("user/tiny", COMMIT)
    for name, digest in origin["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_files_are_those_of_the_commit_that_was_looked_up(
    kept: Repository, hub: HubDouble, tmp_path: Path
) -> None:
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "a"), "--revision", "v1"]) == 0
    asked = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert asked
    assert all(f"/resolve/{COMMIT}/" in path for path in asked)
    assert json.loads((tmp_path / "a" / "hub.json").read_text())["asked_for"] == "v1"


def test_json_is_all_there_is_on_stdout(kept: Repository, tmp_path: Path, capsys: Captured) -> None:
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["revision"] == COMMIT
    assert result["parts"] == ["midi_generator", "mine"]
    assert result["left_out"] == [".gitattributes", "best.pt", "code/run.py"]
    assert result["synthetic"] is True


def test_a_folder_is_only_replaced_when_told_to(
    kept: Repository, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(pull.main, ["user/tiny", "--out", str(out)]) == 0  # an empty one holds nothing
    capsys.readouterr()
    (out / "config.yaml").write_text("changed")
    assert "--force" in complaint(capsys, tmp_path)
    assert (out / "config.yaml").read_text() == "changed"
    assert run(pull.main, ["user/tiny", "--out", str(out), "--force"]) == 0
    capsys.readouterr()
    assert (out / "config.yaml").read_text() != "changed"
    (out / "last").mkdir()
    (out / checkpoint.LAST).write_text("a run")
    assert "--force would lose it" in complaint(capsys, tmp_path, "--force")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    assert "--force would lose it" in complaint(capsys, tmp_path, "--force", out="notes")
    assert "is a file" in complaint(capsys, tmp_path, out="notes/mine.txt")


def test_a_failed_pull_leaves_the_old_folder(
    kept: Repository, tmp_path: Path, capsys: Captured
) -> None:
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    before = (tmp_path / "out" / "best.safetensors").read_bytes()
    kept.sent["config.yaml"] = kept.files["config.yaml"].replace(b"seed: 0", b"seed: 1")
    complaint(capsys, tmp_path, "--force")
    assert (tmp_path / "out" / "best.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/best.safetensors",
        "adapters/../best.safetensors",
        "adapters/../../adapter.safetensors",
        "adapters/..\\x/adapter.safetensors",
        "adapters/.hidden/adapter.safetensors",
        "adapters/a/b/adapter.safetensors",
        "adapters/a\n/adapter.safetensors",
        "best.safetensors\n",
        "./best.safetensors",
        "last/state.safetensors",
        "best.safetensors.pkl",
    ],
)
def test_names_that_lead_elsewhere_are_never_asked_for(
    kept: Repository, hub: HubDouble, tmp_path: Path, capsys: Captured, name: str
) -> None:
    kept.listed[name] = {"size": 10}
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "\n/" not in said
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert not [file for file in files if "evil" in file or ".pkl" in file or "hidden" in file]
    assert len([1 for _, path, _ in hub.requests if "/resolve/" in path]) < 20


def test_a_repository_of_others_is_refused(
    kept: Repository, tmp_path: Path, capsys: Captured
) -> None:
    kept.files = {"pytorch_model.bin": b"x", "README.md": b"hello"}
    assert "holds no checkpoint of kmidi" in complaint(capsys, tmp_path)
    kept.files = {}
    assert "holds no checkpoint of kmidi" in complaint(capsys, tmp_path)


def test_sizes_that_cannot_be_are_refused_before_anything_comes(
    kept: Repository,
    hub: HubDouble,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, size in (("config.yaml", 2 << 20), ("best.safetensors", 1 << 50), ("README.md", -1)):
        kept.listed = {name: {"size": size}}
        assert "that cannot be" in complaint(capsys, tmp_path)
    kept.listed = {"best.safetensors": {"size": None}}
    assert "that cannot be" in complaint(capsys, tmp_path)
    kept.listed = {}
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    assert "GB are free" in complaint(capsys, tmp_path)
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize("name", ["best.safetensors", "config.yaml", "README.md"])
def test_other_bytes_than_named_are_refused(
    kept: Repository, hub: HubDouble, tmp_path: Path, capsys: Captured, name: str
) -> None:
    data = bytearray(kept.files[name])
    data[-1] ^= 1
    kept.sent[name] = bytes(data)
    assert f"{name} of user/tiny is not the file that the server names" in complaint(
        capsys, tmp_path
    )
    kept.sent[name] = kept.files[name] + b"more" * 100_000
    hub.requests.clear()
    assert "is not the file" in complaint(capsys, tmp_path)
    assert not [1 for verb, path, _ in hub.requests if verb == "GET" and path.endswith(name)]


@pytest.mark.parametrize("name", ["best.safetensors", "config.yaml"])
def test_a_cut_download_leaves_nothing(
    kept: Repository,
    tmp_path: Path,
    capsys: Captured,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    kept.cut.add(name)
    said = complaint(capsys, tmp_path)
    assert "try again" in said or "is there a network?" in said
    kept.cut.clear()
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0


def test_what_is_damaged_or_of_another_network_takes_no_place(
    kept: Repository, tmp_path: Path, capsys: Captured
) -> None:
    good = dict(kept.files)
    kept.files["best.safetensors"] = good["best.safetensors"][:-50]
    assert "not a readable safetensors file" in complaint(capsys, tmp_path)
    kept.files["best.safetensors"] = b"\x80\x04 pickle" + b"\0" * 100
    assert "not a readable safetensors file" in complaint(capsys, tmp_path)
    kept.files = dict(good)
    kept.files["config.yaml"] = good["config.yaml"].replace(b"num_layers: 2", b"num_layers: 1")
    assert "describes another network" in complaint(capsys, tmp_path)
    kept.files["config.yaml"] = b"!!python/object/apply:os.system [ls]"
    assert "not allowed" in complaint(capsys, tmp_path)
    del kept.files["config.yaml"]
    assert "lacks config.yaml" in complaint(capsys, tmp_path)
    kept.files = dict(good)
    del kept.files["adapters/mine/adapter_config.yaml"]
    assert "lacks adapters/mine/adapter_config.yaml" in complaint(capsys, tmp_path)


def test_arrays_that_do_not_fit_the_network_are_refused(
    kept: Repository, model: Path, tmp_path: Path, capsys: Captured
) -> None:
    arrays, known = checkpoint.load_arrays(model / checkpoint.BEST)
    arrays.pop(next(iter(arrays)))
    known["config"]["data"]["path"] = "data"
    checkpoint.save_arrays(tmp_path / "short.safetensors", arrays, known)
    kept.files["best.safetensors"] = (tmp_path / "short.safetensors").read_bytes()
    assert "does not fit this model; missing" in complaint(capsys, tmp_path)


def test_what_is_not_there_or_private(
    kept: Repository, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has no such revision" in complaint(capsys, tmp_path, "--revision", "nowhere")
    kept.token = "hf_right"
    assert "is not there, or private" in complaint(capsys, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = complaint(capsys, tmp_path)
    assert "is not there, or private" in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0


def test_a_token_does_not_follow_a_file_to_another_host(
    kept: Repository, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0
    there = [given for _, path, given in hub.requests if path.startswith("/objects/")]
    here = [given for _, path, given in hub.requests if not path.startswith("/objects/")]
    assert len(there) == 2
    assert set(there) == {None}
    assert set(here) == {"Bearer hf_right"}


def test_offline_is_one_sentence(tmp_path: Path, kept: Repository) -> None:
    """As a person meets it: the library reads these variables when it is imported."""
    command = [sys.executable, "-m", "kmidi_mlx.pull", "user/tiny", "--out", str(tmp_path / "out")]
    for variables, words in (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert words in line
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_comes_with_its_own_advice(
    kept: Repository, tmp_path: Path, capsys: Captured
) -> None:
    kept.files = {n: d for n, d in kept.files.items() if n.startswith("adapters/")}
    out = tmp_path / "out"
    assert run(pull.main, ["user/tiny", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "adapter mine for midi_generator" in said
    assert f"--checkpoint BASE --adapter {out}/adapters/mine" in said
    assert "licence: not stated" in said


def test_what_killed_pulls_left_is_removed(kept: Repository, tmp_path: Path) -> None:
    left = tmp_path / ".tmp-pull-0123456789ab"
    left.mkdir()
    (left / "best.safetensors").write_bytes(b"half")
    assert run(pull.main, ["user/tiny", "--out", str(tmp_path / "out")]) == 0
    assert not left.exists()


def test_large_files_that_lie_nowhere(
    kept: Repository,
    hub: HubDouble,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    itself = f"{hub.endpoint}/user/tiny/resolve/{COMMIT}/best.safetensors?"
    for elsewhere, reason in (
        ("http://localhost:9", "ConnectError"),
        ("file:///etc", "UnsupportedProtocol"),
        (itself, "TooManyRedirects"),
    ):
        hub.elsewhere = elsewhere
        assert complaint(capsys, tmp_path) == (
            f"cannot reach {hub.endpoint}, or what it points to ({reason}); is there a network?"
        )


@pytest.mark.parametrize("status", [200, 429, 503])
def test_pages_of_a_gateway_are_one_sentence(
    kept: Repository, hub: HubDouble, tmp_path: Path, capsys: Captured, status: int
) -> None:
    hub.failing, hub.page = status, b"<html>log in to this network</html>"
    said = complaint(capsys, tmp_path)
    assert hub.endpoint in said
    assert "html" not in said
