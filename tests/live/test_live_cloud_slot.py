"""The slot for the newest cloud."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot


def frame(sequence: int) -> CloudFrame:
    return CloudFrame(sequence, 0.0, np.zeros((2, 10), np.float16), 0.0, 0.0)


def test_the_newest_wins_and_is_seen_once() -> None:
    slot = CloudSlot()
    assert slot.newest is None
    assert slot.get() is None
    slot.put(frame(0))
    slot.put(frame(5))
    newest = slot.get()
    assert newest is not None
    assert newest.sequence == 5
    assert slot.get(after=5) is None
    assert slot.get(after=4) is newest


def test_numbers_have_to_ascend() -> None:
    slot = CloudSlot()
    slot.put(frame(3))
    with pytest.raises(ValueError, match="cloud 3 comes after cloud 3"):
        slot.put(frame(3))


def test_a_reader_waits_for_the_next_and_not_longer_than_it_said() -> None:
    slot = CloudSlot()
    threading.Timer(0.05, slot.put, [frame(1)]).start()
    newest = slot.get(after=0, timeout=5.0)
    assert newest is not None
    assert newest.sequence == 1
    begun = time.monotonic()
    assert slot.get(after=1, timeout=0.05) is None
    assert time.monotonic() - begun < 2.0
