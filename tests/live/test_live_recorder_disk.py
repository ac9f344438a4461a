"""Recording onto disks that are slow, hang or are full, and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from live_band import BLOCK, Band, Parts, recording

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import take_files, taking
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SAMPLE_RATE
from kmidi_mlx.live.take import Take


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    yield from recording(tmp_path)


def test_a_slow_disk_makes_nobody_wait_and_loses_nothing(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = parts[0]
    write = take_files._write_all

    def slowly(*arguments: object) -> None:
        time.sleep(0.15)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(take_files, "_write_all", slowly)
    with Band(*parts) as band:
        recorder.start("slow")
        time.sleep(0.6)
        recorder.stop()
    assert band.longest < 0.05
    with Take.open(tmp_path / "takes" / "slow") as take:
        assert take.about["lost"] == {"sound_blocks": 0, "clouds": 0}
        assert take.sound().any(axis=1).mean() > 0.98
        assert len(take.clouds) > 24
        assert len(take.notes) > 24


def test_what_a_hanging_disk_cannot_take_is_counted_and_time_stays_right(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = parts[0]
    monkeypatch.setattr(taking, "_SOUND_BLOCKS", 10)
    monkeypatch.setattr(taking, "_CLOUDS", 10)
    write, hang = take_files._write_all, threading.Event()

    def once(*arguments: object) -> None:
        if hang.is_set():
            hang.clear()
            time.sleep(0.6)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(take_files, "_write_all", once)
    with Band(*parts) as band:
        recorder.start("hung")
        time.sleep(0.5)
        hang.set()
        time.sleep(1.0)
        recorder.stop()
    assert band.longest < 0.05
    with Take.open(tmp_path / "takes" / "hung") as take:
        assert take.about["lost"]["sound_blocks"] > 10
        assert take.about["lost"]["clouds"] > 10
        sound = take.sound()
        assert len(sound) / SAMPLE_RATE == pytest.approx(take.seconds, abs=1e-4)
        # the last block lies where it was heard
        begin = band.times[take.clouds[-1].sequence] - take.clouds.seconds[-1]
        heard, samples = next(row for row in reversed(band.blocks) if row[0] < begin + 1.2)
        place = round((heard - begin) * SAMPLE_RATE)
        near = [np.array_equal(sound[place + k :][:BLOCK], samples) for k in range(-221, 222)]
        assert any(near)


def run_child(code: str, *arguments: str) -> subprocess.Popen[str]:
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(Path.cwd())])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


KILLED = """
import sys, time
from pathlib import Path
from live_band import Band
from kmidi_mlx.live import taking
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SoundFan
parts = SoundFan(), CloudSlot()
recorder = Recorder(Path(sys.argv[1]), *parts)
taking._COMMIT_SECONDS = 0.5
with Band(recorder, *parts):
    recorder.start("killed")
    time.sleep(1.4)
    print("now", flush=True)
    time.sleep(60)
"""


def test_a_kill_leaves_everything_that_was_written(tmp_path: Path) -> None:
    with run_child(KILLED, str(tmp_path)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
    folder = tmp_path / "killed"
    with Take.open(folder) as take:
        assert not take.finished
        # the take begins 0.2 s after its start; sound and clouds are written ten times a second
        assert 1.0 < take.seconds < 1.4
        assert len(take.sound()) / SAMPLE_RATE > 1.0
        assert take.sound().any(axis=1).mean() > 0.95
        assert take.clouds.seconds[-1] > 1.0
        assert len(take.clouds) > 40
        assert take.clouds[-1].points.shape == (200, 10)
        # music less often
        assert take.notes.duration_seconds > 0.6
        assert len(take.notes) > 25
    # other programs read the header only
    assert soundfile.info(folder / "sound.wav").duration > 1.0


FULL = """
import json, resource, sys, time
from pathlib import Path
from live_band import Band
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SoundFan
parts, said = (SoundFan(), CloudSlot()), []
recorder = Recorder(Path(sys.argv[1]), *parts, said.append)
if "limit" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
with Band(recorder, *parts) as band:
    recorder.start("full")
    begun = time.monotonic()
    while not said and time.monotonic() - begun < 10:
        time.sleep(0.01)
    after, name = len(band.times), recorder.name
    time.sleep(0.2)
    played_on = len(band.times) - after
    try:
        recorder.stop()
    except KmidiError as error:
        said.append(str(error))
print(json.dumps([said, name, played_on, band.longest]))
"""


def check_full(printed: str, folder: Path, reason: str) -> None:
    """All that came before is there, in whole files, and the band has played on."""
    said, name, played_on, longest = json.loads(printed)
    assert said == [
        f"the recording full ended: {reason}; what came before is kept.",
        "nothing is being recorded.",
    ]
    assert name == ""
    assert played_on >= 5
    assert longest < 0.05
    with Take.open(folder / "full") as take:
        assert not take.finished
        assert take.about["problem"] == said[0]
        assert len(take.clouds) > 5
        assert take.sound().any(axis=1).mean() > 0.95
        assert len(take.notes) > 10
        assert len(take.sound()) / SAMPLE_RATE > 0.3
        # the last words found their room
        assert take.notes.duration_seconds > take.clouds.seconds[-1] - 0.3


def test_a_full_disk_ends_the_take_and_nothing_else(tmp_path: Path) -> None:
    with run_child(FULL, str(tmp_path), "limit") as child:
        printed, _ = child.communicate(timeout=60)
    check_full(printed, tmp_path, "File too large")


def test_a_disk_without_room_ends_the_take_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root may make a tiny disk")
    try:
        with run_child(FULL, str(disk)) as child:
            printed, _ = child.communicate(timeout=60)
        check_full(printed, disk, "No space left on device")
        with pytest.raises(KmidiError, match=r"cannot record again: .*No space left on device"):
            Recorder(disk, None, CloudSlot()).start("again")
        assert not (disk / "again").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_stopping_tells_when_the_disk_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    clouds = CloudSlot()
    recorder = Recorder(tmp_path, None, clouds, said.append)
    recorder.start("last")
    time.sleep(0.25)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(take_files.CloudFile, "close", refuse)
    with pytest.raises(KmidiError, match="No space left on device; what came before is kept"):
        recorder.stop()
    assert said == []  # it was told already
    assert recorder.name == ""


def test_a_disk_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kmidi_mlx.live import recorder as module

    monkeypatch.setattr(module, "_STOP_SECONDS", 0.1)
    recorder = Recorder(tmp_path, None, CloudSlot())
    recorder.start("hangs")
    done = threading.Event()
    close = take_files.MusicFile.close

    def late(file: take_files.MusicFile, end: float) -> None:
        done.wait(5.0)
        close(file, end)

    monkeypatch.setattr(take_files.MusicFile, "close", late)
    with pytest.raises(KmidiError, match="the disk is slow: hangs is still being written"):
        recorder.stop()
    assert recorder.name == ""
    done.set()
    wait_until(lambda: json.loads((tmp_path / "hangs" / "take.json").read_text())["finished"])


def wait_until(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 5.0, "it did not come to pass"
        time.sleep(0.01)
