"""A minute of everything that a person does to it, on tiny networks."""

from __future__ import annotations

import sys
from pathlib import Path

from small_concert import GENERATOR, SPECTOCLOUD, save_checkpoint, small_config

from bench import live

SECONDS = 60.0


def test_a_minute_of_changes(tmp_path: Path) -> None:
    generator, cloud = tmp_path / "generator", tmp_path / "cloud"
    for folder, run in ((generator, GENERATOR), (cloud, SPECTOCLOUD)):
        folder.mkdir()
        save_checkpoint(folder, run)
    config = small_config(generator, cloud, loop={"frames_per_second": 60}, music={"tempo": 120.0})
    before = sys.getswitchinterval()
    sys.setswitchinterval(live.SWITCH_SECONDS)
    try:
        row = live.play(config, tmp_path / "takes", SECONDS, changes=0.5)
    finally:
        sys.setswitchinterval(before)
    assert row["notes"] > 50
    assert row["replans"] > 30
    assert (row["hanging"], row["more_threads"]) == (0, 0)
    # how late notes are is for a machine that does nothing else; here a change that leaves the plan
    # a tenth of a second may meet a stall of the machine
    assert row["underruns"] <= 5
    assert row["memory_end_gb"] - row["memory_half_gb"] < live.MOST_GROWTH_GB
