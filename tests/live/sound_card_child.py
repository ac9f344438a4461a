"""A process that plays on a sound card and hears it again, for tests with a real sound system.

It waits for a line, until its output is joined to its input, plays a tone that comes and goes, and
writes what it heard to a file. Then it waits for the sound system to go away.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from kmidi_mlx.live.listening import listen_to
from kmidi_mlx.live.sound import SoundBlock, SoundFan
from kmidi_mlx.live.sound_device import SoundDevice, list_devices

RATE = 44_100
BLOCK = 882
SECONDS = 1.4
LEAD = 0.04


def tone(first: int) -> np.ndarray:
    """A kilohertz that sounds in the first half of every half second."""
    index = first + np.arange(BLOCK)
    on = (index % (RATE // 2)) < RATE // 4
    wave = 0.5 * on * np.sin(2 * np.pi * 1000 * index / RATE)
    return np.repeat((32_767 * wave).astype(np.int16)[:, None], 2, axis=1)


def play(fan: SoundFan, begun: float, stop: threading.Event) -> None:
    first = 0
    while not stop.wait(max(0.0, begun + first / RATE - LEAD - time.monotonic())):
        fan.put(tone(first), begun + first / RATE)
        first += BLOCK


def main() -> None:
    devices = list_devices()
    if not devices["outputs"]:
        print(json.dumps({"outputs": []}), flush=True)
        return
    lost: list[str] = []
    fan = SoundFan()
    heard = listen_to("input", lambda error: lost.append(str(error)))
    card = SoundDevice(fan, "default", lambda error: lost.append(str(error)))
    told = {"devices": devices, "input": heard.name, "output": card.name}
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
    stop, begun = threading.Event(), time.monotonic() + 0.1
    player = threading.Thread(target=play, args=(fan, begun, stop))
    reader = heard.fan.reader(blocks=1000)
    player.start()
    blocks: list[SoundBlock] = []
    while time.monotonic() < begun + SECONDS:
        block = reader.read(0.5)
        if block is not None:
            blocks.append(block)
    times = [block.time_monotonic - begun for block in blocks]
    lengths = [len(block.samples) for block in blocks]
    np.savez(
        sys.argv[1], samples=np.concatenate([block.samples for block in blocks]), times=times,
        lengths=lengths,
    )  # fmt: skip
    figures = {"underruns": card.underruns, "gaps": card.gaps, "overruns": heard.overruns}
    print(json.dumps({**figures, "errors": lost}), flush=True)
    while len(lost) < 2:
        time.sleep(0.01)
    gone = time.monotonic()
    closing = threading.Thread(target=heard.close)
    closing.start()
    card.close()
    closing.join()
    stop.set()
    player.join()
    told = {"lost": sorted(lost), "closed_in": time.monotonic() - gone, **list_devices()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
