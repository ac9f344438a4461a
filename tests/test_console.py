from __future__ import annotations

import io
import os
import pty
import re
import threading

import pytest

from kmidi_mlx.console import Progress


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_plain_lines_come_at_most_every_interval(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100, "prepare", "files", stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.seconds += 0.5
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare: 20/100 files, 2 files/s, 0:40 left"
    assert lines[3] == "prepare: 80/100 files, 2 files/s, 0:10 left"
    assert lines[-1] == "prepare: 100/100 files in 0:50, 2 files/s"
    assert len(lines) == 6


def test_fields_stay_until_they_change(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(None, "train", stream=stream, clock=clock, interval_seconds=1.0) as progress:
        clock.seconds += 2.0
        progress.advance(
            4, loss=2.34567, tokens_per_second=12345.6, peak_gb=0.09767, phase="warm-up"
        )
        clock.seconds += 2.0
        progress.advance(4, loss=1.0)
    first, second, _ = stream.getvalue().splitlines()
    assert first == (
        "train: 4 steps, 2 steps/s, loss 2.346, 12,346 tokens/s, peak 0.10 GB, phase warm-up"
    )
    assert (
        second == "train: 8 steps, 2 steps/s, loss 1, 12,346 tokens/s, peak 0.10 GB, phase warm-up"
    )


def test_a_resumed_run_does_not_count_what_was_done_before(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(3000, "train", initial=1000, stream=stream, clock=clock) as progress:
        clock.seconds += 10.0
        progress.advance(10)
    line, last = stream.getvalue().splitlines()
    assert line == "train: 1010/3000 steps, 1 steps/s, 33:10 left"
    assert last == "train: 1010/3000 steps in 0:10, 1 steps/s"


def test_the_rate_follows_the_last_minute(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(None, "train", stream=stream, clock=clock) as progress:
        for speed in (100, 1):
            for _ in range(120):
                clock.seconds += 1.0
                progress.advance(speed)
        assert progress.rate == pytest.approx(1.0)


def test_notes_come_at_once_and_literally(clock: Clock) -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(3, "prepare", stream=stream, clock=clock) as progress:
            before = len(stream.getvalue())
            progress.note("[red]skipped[/red] a.mid: no notes")
            assert "[red]skipped[/red] a.mid: no notes\n" in stream.getvalue()[before:]


def test_no_work_is_one_line(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(0, "prepare", "files", stream=stream, clock=clock):
        pass
    assert stream.getvalue() == "prepare: 0/0 files in 0:00\n"


def test_a_failure_still_says_how_far_it_went(clock: Clock) -> None:
    stream = io.StringIO()

    def fail() -> None:
        with Progress(9, "train", stream=stream, clock=clock) as progress:
            progress.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stream.getvalue().startswith("train: 3/9 steps in 0:00")


def test_everything_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "prepare") as progress:
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prepare: 1/1 step in")


def read_all(descriptor: int, chunks: list[bytes]) -> None:
    try:
        while chunk := os.read(descriptor, 4096):
            chunks.append(chunk)
    except OSError:  # Linux says so when the other side is closed
        return


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    parent, child = pty.openpty()
    chunks: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(parent, chunks))
    reader.start()
    threads = threading.active_count()
    with (
        os.fdopen(child, "w", encoding="utf-8") as stream,
        Progress(100, "train", stream=stream, clock=clock) as progress,
    ):
        assert threading.active_count() == threads
        for _ in range(50):
            clock.seconds += 0.5
            progress.advance(1, loss=0.5)
    reader.join()
    os.close(parent)
    shown = b"".join(chunks).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "train ━" in plain
    assert "50/100, 2 steps/s, 0:25 left, loss 0.5" in plain
    assert "\x1b[?25h" in shown  # the cursor is visible again


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(1, "train", stream=stream, clock=clock) as progress:
        progress.advance()
    assert stream.getvalue() == "train: 1/1 step in 0:00\n"
