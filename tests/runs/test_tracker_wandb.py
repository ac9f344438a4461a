"""Offline runs, read back from what wandb has written; and servers that do not answer."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.runs.tracker_process import ProcessTracker
from kmidi_mlx.runs.trackers import check_trackers

pytest.importorskip("wandb")

READ = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record
for line in sys.stdin:
    record = Record.FromString(bytes.fromhex(line))
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = {}
        for item in record.history.item:
            name, *inner = [item.key] if item.key else item.nested_key
            value = json.loads(item.value_json)
            items[name] = {**items.get(name, {}), inner[0]: value} if inner else value
        print(json.dumps(["history", items]))
    elif kind == "run":
        about = {"config": {i.key: json.loads(i.value_json) for i in record.run.config.update}}
        about |= {"project": record.run.project, "id": record.run.run_id}
        print(json.dumps(["run", about]))
    elif kind == "exit":
        print(json.dumps(["exit", record.exit.exit_code]))
"""


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login of the person who tests, no network."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(path: Path) -> Iterator[bytes]:
    """Records of a log in blocks of 32 KiB, each part behind checksum, length and kind."""
    data, place, parts = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


def told(folder: Path) -> list[list[tuple[str, Any]]]:
    """What each of the processes of a run has told, in their order."""
    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        lines = "\n".join(record.hex() for record in records(path))
        done = subprocess.run(
            [sys.executable, "-c", READ], input=lines, capture_output=True, text=True, check=True
        )
        runs.append([json.loads(line) for line in done.stdout.splitlines()])
    return runs


def history(run: list[tuple[str, Any]], name: str) -> list[tuple[int, Any]]:
    return [
        (items["_step"], items[name]) for kind, items in run if kind == "history" and name in items
    ]


def test_an_offline_run_and_its_resume_are_one_run_with_every_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    sample = folder / "samples" / "step-000004.mid"
    write_midi(Notes.build([60], [80], [0.0], [0.5]), sample)
    first = ProcessTracker("wandb", folder, "midi-generator")
    first.start({"model": {"hidden_dim": 64}}, 0)
    for step in range(1, 7):
        first.log(step, {"loss": 1.0 / step, "learning_rate": 0.5})
        if step == 4:
            first.log(step, {"val_loss": 2.5})
            first.add_samples(step, [sample])
    first.finish("interrupted")
    time.sleep(1.1)  # names of offline runs count seconds
    second = ProcessTracker("wandb", folder, "midi-generator")
    second.start({"model": {"hidden_dim": 64}}, 3)  # the last save was before the end
    for step in range(4, 9):
        second.log(step, {"loss": 1.0 / step, "learning_rate": 0.5})
        if step % 4 == 0:
            second.log(step, {"val_loss": 10.0 / step})
            second.add_samples(step, [sample])
    second.finish("finished")

    one, two = told(folder)
    about, later = (next(item for kind, item in run if kind == "run") for run in (one, two))
    assert about["project"] == "midi-generator"
    assert about["config"]["model"] == {"hidden_dim": 64}
    assert about["id"] == later["id"] == json.loads((folder / "wandb.json").read_text())["id"]
    losses = [*history(one, "train/loss"), *history(two, "train/loss")]
    assert losses == [(step, pytest.approx(1.0 / step)) for step in range(1, 9)]
    assert [*history(one, "val/loss"), *history(two, "val/loss")] == [(4, 2.5), (8, 1.25)]
    for name, suffix in (("samples/sound", ".wav"), ("samples/picture", ".png")):
        shown = [*history(one, name), *history(two, name)]
        assert [step for step, _ in shown] == [4, 8]
        assert all(value["path"].endswith(suffix) for _, value in shown)
    copy = sorted(folder.glob("wandb/offline-run-*/files/samples/*.mid"))[0]
    assert copy.read_bytes() == sample.read_bytes()
    assert not copy.is_symlink()
    assert [item for kind, item in one if kind == "exit"] == [0]


def test_without_a_login_it_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_trackers(["wandb", "wandb"]) == ("wandb",)
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(KmidiError, match=r"wandb login.*WANDB_MODE=offline"):
        check_trackers(["wandb"])


def test_a_server_that_does_not_answer_takes_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "local-" + "a" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = ProcessTracker("wandb", tmp_path, "spectocloud", finish_seconds=3.0)
        tracker.start({}, 0)
        started = time.monotonic()
        for step in range(100):
            tracker.log(step, {"loss": 1.0})
        assert time.monotonic() - started < 1.0
        with pytest.raises(KmidiError, match="did not finish within 3 s"):
            tracker.finish("finished")
        assert time.monotonic() - started < 10.0


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb.json").mkdir()  # what cannot be written
    tracker = ProcessTracker("wandb", folder, "spectocloud", finish_seconds=30.0)
    tracker.start({}, 0)
    with pytest.raises(KmidiError, match=r"wandb\.json"):
        tracker.finish("finished")
