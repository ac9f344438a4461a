"""Figures of performance, the log, and alerts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import stats as module
from kmidi_mlx.live.stats import WINDOW_SECONDS, Stats, StatsLog, resident_gb
from kmidi_mlx.live_config import LiveAlertsConfig

Alerts = list[tuple[str, str, str | None]]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run_at(stats: Stats, clock: Clock, rate: float, seconds: float, work: float) -> None:
    for _ in range(round(rate * seconds)):
        clock.now += 1 / rate
        stats.frame(clock.now, work)


def test_what_is_shown_is_of_the_last_seconds_and_the_report_of_the_whole_run() -> None:
    clock = Clock()
    stats = Stats(clock)
    run_at(stats, clock, 60, 10.0, 0.004)
    assert stats.snapshot()["fps"] == pytest.approx(60.0)
    run_at(stats, clock, 30, 10.0, 0.020)
    shown = stats.snapshot()
    assert shown["fps"] == pytest.approx(30.0)
    assert shown["frame_ms_p50"] == pytest.approx(20.0)
    report = stats.report()
    assert report["frames"] == 900
    assert report["fps"] == pytest.approx(899 / (20.0 - 1 / 60))
    assert report["frame_ms_p50"] == pytest.approx(4.0, rel=0.15)
    assert report["frame_ms_p99"] == pytest.approx(20.0, rel=0.15)


def test_frames_that_stay_away_are_seen_before_the_next_one_comes() -> None:
    clock = Clock()
    stats = Stats(clock)
    run_at(stats, clock, 60, 5.0, 0.004)
    clock.now += 1.0
    assert stats.snapshot()["fps"] == pytest.approx(48.0, abs=1.0)
    clock.now += WINDOW_SECONDS
    assert stats.snapshot()["fps"] == 0.0
    assert stats.snapshot()["frame_ms_p99"] == 0.0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(1e-5, 1.0)), min_size=1, max_size=40),
    st.floats(0.0, 6.0),
)
def test_percentiles_are_those_of_the_window(
    steps: list[tuple[float, float]], pause: float
) -> None:
    clock = Clock()
    stats = Stats(clock)
    rows = []
    for step, seconds in steps:
        clock.now += step
        stats.token(seconds)
        rows.append((clock.now, seconds))
    clock.now += pause
    inside = [seconds for at, seconds in rows if at >= clock.now - WINDOW_SECONDS]
    wanted = 1e3 * np.percentile(inside, 99) if inside else 0.0
    assert stats.snapshot()["token_ms_p99"] == pytest.approx(wanted)
    assert stats.report()["tokens"] == len(rows)


def test_the_least_music_ahead_counts_drops_and_quality() -> None:
    clock = Clock()
    stats = Stats(clock)
    assert stats.report()["lookahead_min_seconds"] is None
    for ahead in (4.0, 0.5, 3.0):
        clock.now += 1.0
        stats.lookahead(ahead, ahead / 2)
    assert stats.snapshot()["lookahead_min_seconds"] == 0.5
    clock.now += WINDOW_SECONDS
    stats.lookahead(2.0, 1.0)
    stats.quality(2, "fewer points")
    clock.now += 3.0
    stats.dropped(2)
    stats.dropped()
    stats.underrun()
    shown, report = stats.snapshot(), stats.report()
    assert (shown["lookahead_seconds"], shown["lookahead_bars"]) == (2.0, 1.0)
    assert shown["lookahead_min_seconds"] == 2.0
    assert report["lookahead_min_seconds"] == 0.5
    assert (shown["dropped_frames"], shown["underruns"]) == (3, 1)
    assert (shown["quality"], shown["quality_text"]) == (2, "fewer points")
    assert report["quality_seconds"] == {"0": 8.0, "2": 3.0}
    stats.clear()
    assert stats.report()["dropped_frames"] == 0
    assert stats.report()["lookahead_min_seconds"] is None
    assert stats.snapshot()["quality"] == 2
    json.dumps([shown, report], allow_nan=False)


def test_threads_lose_no_count() -> None:
    stats = Stats()

    def work() -> None:
        for _ in range(500):
            stats.token(0.001)
            stats.dropped()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stats.report()["tokens"], stats.report()["dropped_frames"]) == (2000, 2000)


def test_memory_is_that_of_now_and_not_the_largest_so_far() -> None:
    before = resident_gb()
    held = np.ones(25_000_000)
    during = resident_gb()
    del held
    after = resident_gb()
    assert 0.01 < before < 20.0
    assert during - before == pytest.approx(0.2, abs=0.05)
    assert after < during - 0.1


def test_the_footprint_that_macos_tells() -> None:
    class Library:
        def proc_pid_rusage(self, process: int, flavour: int, place: Any) -> int:
            # 16 bytes of identity, then the eighth number
            address = module.ctypes.addressof(place._obj) + 16 + 7 * 8
            module.ctypes.c_uint64.from_address(address).value = 1_234_000_000
            return 0 if process and flavour == 0 else -1

    assert module._footprint(Library()) == 1_234_000_000


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_SECONDS", 0.01)
    monkeypatch.setattr(module, "ALERT_SECONDS", 0.1)


def wait_until(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 5.0, "it did not come to pass"
        time.sleep(0.005)


def log_of(values: dict[str, Any], alerts: Alerts, log: str = "", playing: bool = True) -> StatsLog:
    config = LiveAlertsConfig(log=log)
    return StatsLog(
        lambda: values, lambda *alert: alerts.append(alert), config, 16.0, lambda: playing
    )


@pytest.mark.usefixtures("fast")
def test_the_log_is_a_table_and_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    values = {"fps": 60.0, "memory_gb": 0.5, "quality_text": 'less, "but" more'}
    for _ in range(2):
        log = log_of(values, [], str(path))
        log.start()
        before = path.stat().st_size
        wait_until(lambda before=before: path.stat().st_size > before + 200)
        log.stop()
        assert not log.is_alive()
        # as a kill leaves it
        with path.open("ab") as file:
            file.write(b"2026-01-01,6")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    whole = [row for row in rows if row["quality_text"] == values["quality_text"]]
    assert len(whole) >= len(rows) - 2 > 4
    assert list(rows[0]) == ["time", *values]
    assert whole[-1]["fps"] == "60.0"


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader,\n")
    with pytest.raises(KmidiError, match="other columns"):
        log_of({"fps": 1.0, "memory_gb": 0.1}, [], str(path))
    assert path.read_text() == "Dear reader,\n"
    with pytest.raises(KmidiError, match="cannot write the log"):
        log_of({"fps": 1.0, "memory_gb": 0.1}, [], str(tmp_path))
    with pytest.raises(KmidiError, match="No space left"):
        log_of({"fps": 1.0, "memory_gb": 0.1}, [], "/dev/full")


@pytest.mark.usefixtures("fast")
def test_too_few_frames_are_an_alert_after_a_while_and_it_is_taken_back() -> None:
    values, alerts = {"fps": 60.0, "memory_gb": 0.5}, Alerts()
    log = log_of(values, alerts)
    log.start()
    values["fps"] = 20.0
    time.sleep(0.03)
    values["fps"] = 60.0
    time.sleep(0.05)
    assert alerts == []  # too short to matter
    values["fps"] = 20.0
    wait_until(lambda: len(alerts) == 1)
    assert alerts[0][:2] == ("fps", "warning")
    assert "20 clouds a second" in str(alerts[0][2])
    time.sleep(0.05)
    assert len(alerts) == 1  # said once
    values["fps"] = 60.0
    wait_until(lambda: len(alerts) == 2)
    assert alerts[1] == ("fps", "warning", None)
    values["memory_gb"] = 15.0
    wait_until(lambda: len(alerts) == 3)
    assert alerts[2][0] == "memory"
    assert "15.0 GB" in str(alerts[2][2])
    values["memory_gb"] = 1.0
    wait_until(lambda: len(alerts) == 4)
    assert alerts[3] == ("memory", "warning", None)
    log.stop()


@pytest.mark.usefixtures("fast")
def test_no_frames_are_no_alert_while_nothing_plays() -> None:
    alerts = Alerts()
    log = log_of({"fps": 0.0, "memory_gb": 0.5}, alerts, playing=False)
    log.start()
    time.sleep(0.25)
    log.stop()
    assert alerts == []


FULL = """
import json, resource, sys, time
from kmidi_mlx.live import stats
from kmidi_mlx.live_config import LiveAlertsConfig
stats._LOG_SECONDS = 0.005
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
alerts, values = [], {"fps": 60.0, "memory_gb": 0.5}
log = stats.StatsLog(lambda: values, lambda *alert: alerts.append(alert),
                     LiveAlertsConfig(log=sys.argv[1]), 16.0, lambda: True)
log.start()
time.sleep(0.3)
values["memory_gb"] = 16.0
time.sleep(0.1)
alive = log.is_alive()
log.stop()
print(json.dumps([alive, alerts]))
"""


def test_a_full_disk_is_told_once_and_the_watch_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    alive, alerts = json.loads(done.stdout)
    assert alive
    assert [alert[0] for alert in alerts] == ["log", "memory"]
    assert "no longer written" in alerts[0][2]
    assert path.read_text().startswith("time,fps,memory_gb\n")
