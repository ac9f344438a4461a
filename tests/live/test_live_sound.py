"""The sound: to the sample in time, silent when told, never waiting for who listens."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.audio.sampler import Sampler
from kmidi_mlx.live import sound as sound_module
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundBlock, SoundEngine, SoundFan

Samples = NDArray[np.int16]
# room for what was told too late to be in the next block
LEAD = 0.06


class Clock:
    """Takes the place of `time` in the module: waiting takes no time, unless somebody stalls."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Stopping:
    """Takes the place of the event that ends the thread: waiting moves the clock."""

    def __init__(self, clock: Clock, until: float, at: dict[float, Any]) -> None:
        self._clock = clock
        self._until = until
        self._at = sorted(at.items())

    def wait(self, seconds: float) -> bool:
        self._clock.now += seconds
        while self._at and self._at[0][0] <= self._clock.now:
            self._at.pop(0)[1]()
        return self._clock.now >= self._until


def played(
    engine: SoundEngine,
    fan: SoundFan,
    clock: Clock,
    seconds: float,
    at: dict[float, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> list[SoundBlock]:
    """Run the engine's thread function for simulated seconds, doing things at moments."""
    reader = fan.reader(100_000)
    with monkeypatch.context() as patch:
        patch.setattr(sound_module, "time", clock)
        patch.setattr(sound_module, "hurry", lambda: True)
        patch.setattr(engine, "_stopping", Stopping(clock, clock.now + seconds, at))
        engine.run()
    blocks = []
    while (block := reader.read(0.0)) is not None:
        blocks.append(block)
    reader.close()
    return blocks


def onset(blocks: list[SoundBlock], threshold: int = 8) -> float:
    """Moment of the first sample that is heard."""
    for block in blocks:
        loud = np.flatnonzero(np.abs(block.samples).max(axis=1) > threshold)
        if len(loud):
            return block.time_monotonic + loud[0] / SAMPLE_RATE
    raise AssertionError("nothing was heard")


def joined(blocks: list[SoundBlock]) -> Samples:
    return np.concatenate([block.samples for block in blocks])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@settings(max_examples=12, deadline=None)
@given(
    block_ms=st.sampled_from([5.0, 7.3, 20.0, 100.0]),
    later=st.floats(0.2, 0.5),
    pitch=st.integers(30, 90),
)
def test_an_onset_is_to_the_sample_whatever_the_block(
    block_ms: float, later: float, pitch: int
) -> None:
    clock, fan = Clock(), SoundFan()
    engine = SoundEngine(fan, block_ms, volume=1.0)
    at = clock.now + later
    with pytest.MonkeyPatch.context() as patch:
        blocks = played(
            engine,
            fan,
            clock,
            0.8,
            {at - LEAD - 0.1: lambda: engine.note_on(pitch, 100, at)},
            patch,
        )
    # the sampler alone says how long the instrument takes to be heard
    alone = Sampler(sample_rate=SAMPLE_RATE, polyphony=64)
    alone.note_on(pitch, 100, 0)
    heard = (np.clip(alone.render_block(8192), -1, 1) * 32_767).astype(np.int16)
    delay = np.flatnonzero(np.abs(heard).max(axis=1) > 8)[0] / SAMPLE_RATE
    assert onset(blocks) == pytest.approx(at + delay, abs=1.01 / SAMPLE_RATE)


def test_the_sound_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    for block_ms in (5.0, 20.0):
        clock, fan = Clock(), SoundFan()
        engine = SoundEngine(fan, block_ms, volume=1.0)
        begun = clock.now
        for pitch, on, off in ((60, 0.10, 0.30), (64, 0.1004, 0.2), (60, 0.35, 0.5)):
            engine.note_on(pitch, 90, begun + on)
            engine.note_off(pitch, begun + off)
        heard.append(joined(played(engine, fan, clock, 0.8, {}, monkeypatch)))
    count = min(map(len, heard))
    assert np.abs(heard[0][:count].astype(int) - heard[1][:count]).max() <= 1
    assert np.abs(heard[0]).max() > 1000


def test_blocks_follow_one_another_and_are_ready_before_they_are_heard(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan)
    ready: list[float] = []
    put = fan.put
    monkeypatch.setattr(fan, "put", lambda s, t: (ready.append(t - clock.now), put(s, t)))
    blocks = played(engine, fan, clock, 1.0, {}, monkeypatch)
    assert [block.sequence for block in blocks] == list(range(len(blocks)))
    assert engine.blocks == len(blocks) >= 49
    moments = np.array([block.time_monotonic for block in blocks])
    np.testing.assert_allclose(np.diff(moments), 0.02, atol=1e-9)
    assert min(ready) >= 0.04 - 1e-6
    assert not blocks[0].samples.flags.writeable


def test_silence_is_silence_and_drops_what_was_told_for_later(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    begun = clock.now
    engine.note_on(48, 120, begun + 0.05)
    engine.note_on(72, 120, begun + 1.2)
    blocks = played(engine, fan, clock, 2.0, {begun + 0.5: engine.silence}, monkeypatch)
    before = joined([block for block in blocks if block.time_monotonic < begun + 0.5])
    after = joined([block for block in blocks if block.time_monotonic > begun + 1.1])
    assert np.abs(before).max() > 2000
    # the damper's tail, and not the second note
    assert np.abs(after).max() < 40
    assert np.abs(joined(blocks[-5:])).max() < 8


def test_what_is_told_after_silence_sounds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    engine.note_on(48, 120, clock.now + 0.3)
    engine.silence()
    at = clock.now + 0.4
    engine.note_on(72, 120, at)
    assert onset(played(engine, fan, clock, 0.8, {}, monkeypatch)) >= at


def test_after_a_stall_it_goes_on_from_now_and_nothing_hangs(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan, block_ms=5.0, volume=1.0)
    begun = clock.now

    def stall() -> None:
        # told before the machine slept, for a moment within the sleep
        engine.note_on(30, 110, clock.now + 0.055)
        clock.now += 3.0

    def end() -> None:
        engine.note_off(30, begun + 1.5)

    later = begun + 6.0
    told = {
        begun + 1.0: stall,
        begun + 4.007: end,
        later - 0.2: lambda: engine.note_on(72, 110, later),
    }
    blocks = played(engine, fan, clock, 7.0, told, monkeypatch)
    assert engine.stalls == 1
    gaps = np.diff([block.time_monotonic for block in blocks])
    assert (gaps > 1.0).sum() == 1
    assert (gaps > 0).all()
    # the note that began and ended meanwhile does not sound on, the next one is in time
    quiet = [b for b in blocks if begun + 5.2 < b.time_monotonic < begun + 5.7]
    assert np.abs(joined(quiet)).max() < 8
    assert onset([b for b in blocks if b.time_monotonic > later - 0.05]) >= later


def test_short_delays_are_caught_up_with(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan)

    def delay() -> None:
        clock.now += 0.2

    blocks = played(engine, fan, clock, 1.0, {clock.now + 0.3: delay}, monkeypatch)
    assert engine.stalls == 0
    np.testing.assert_allclose(np.diff([b.time_monotonic for b in blocks]), 0.02, atol=1e-9)


def test_a_change_of_volume_does_not_click(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant sound beside, so that each step of the volume would be seen."""

    class Constant:
        def pull(self, count: int) -> NDArray[np.float32]:
            return np.full((count, 2), 0.8, np.float32)

        def heard(self, samples: NDArray[np.float32], time_monotonic: float) -> None:
            pass

    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    engine.beside = Constant()

    def turn(volume: float) -> Any:
        return lambda: setattr(engine, "volume", volume)

    now = clock.now
    blocks = played(
        engine, fan, clock, 1.0, {now + 0.2: turn(0.0), now + 0.5: turn(0.5)}, monkeypatch
    )
    sound = joined(blocks)[:, 0].astype(int)
    # full range within a block of 882 samples: no step is larger than a few times 1/882
    assert np.abs(np.diff(sound)).max() <= 0.8 * 32_767 / 882 * 1.1 + 1
    assert sound[0] == pytest.approx(0.8 * 32_767, abs=1)
    assert 0 in sound
    assert sound[-1] == pytest.approx(0.4 * 32_767, abs=1)


def test_sound_beside_is_mixed_in_and_told_when_it_is_heard(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ramp:
        def __init__(self) -> None:
            self.pulled = 0
            self.told: list[tuple[float, int]] = []

        def pull(self, count: int) -> NDArray[np.float32]:
            rows = np.arange(self.pulled, self.pulled + count) % 100 / 200
            self.pulled += count
            return np.repeat(rows.astype(np.float32)[:, None], 2, 1)

        def heard(self, samples: NDArray[np.float32], time_monotonic: float) -> None:
            self.told.append((time_monotonic, len(samples)))

    fan, ramp = SoundFan(), Ramp()
    engine = SoundEngine(fan, volume=0.5)
    engine.beside = ramp
    blocks = played(engine, fan, clock, 0.5, {}, monkeypatch)
    assert ramp.told == [(block.time_monotonic, len(block.samples)) for block in blocks]
    wanted = (np.arange(ramp.pulled) % 100 / 400 * 32_767).astype(np.int16)
    assert np.abs(joined(blocks)[:, 0].astype(int) - wanted).max() <= 1


def test_loud_sound_is_clipped_and_does_not_wrap(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loud:
        def pull(self, count: int) -> NDArray[np.float32]:
            return np.full((count, 2), (3.0, -3.0), np.float32)

        def heard(self, samples: NDArray[np.float32], time_monotonic: float) -> None:
            pass

    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    engine.beside = Loud()
    sound = joined(played(engine, fan, clock, 0.2, {}, monkeypatch))
    assert (sound == (32_767, -32_767)).all()


def test_fewer_voices_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    fan = SoundFan()
    engine = SoundEngine(fan, polyphony=64)
    engine.set_polyphony(2)
    for pitch in range(40, 80):
        engine.note_on(pitch, 90, clock.now + 0.1)
    played(engine, fan, clock, 0.5, {}, monkeypatch)
    assert engine._sampler.voices <= 2


def test_readers_lose_the_oldest_and_count_them() -> None:
    fan = SoundFan()
    slow, quick = fan.reader(4), fan.reader(100)
    for index in range(10):
        fan.put(np.zeros((8, 2), np.int16), float(index))
    late = fan.reader()
    assert [slow.read(0.0).sequence for _ in range(4)] == [6, 7, 8, 9]  # type: ignore[union-attr]
    assert slow.lost == 6
    assert slow.read(0.0) is None
    assert quick.lost == 0
    assert [quick.read(0.0).time_monotonic for _ in range(10)] == list(range(10))  # type: ignore[union-attr]
    assert late.read(0.0) is None
    slow.close()
    slow.close()
    fan.put(np.zeros((8, 2), np.int16), 10.0)
    assert slow.read(0.0) is None
    assert late.read(0.0).sequence == 10  # type: ignore[union-attr]


def test_a_reader_waits_for_the_next_block() -> None:
    fan = SoundFan()
    reader = fan.reader()
    timer = threading.Timer(0.1, fan.put, (np.ones((4, 2), np.int16), 5.0))
    timer.start()
    block = reader.read(5.0)
    assert block is not None
    assert (block.samples == 1).all()
    begun = time.monotonic()
    assert reader.read(0.05) is None
    assert time.monotonic() - begun >= 0.04
    timer.join()


def test_the_thread_plays_in_real_time_and_ends() -> None:
    fan = SoundFan()
    engine = SoundEngine(fan, volume=1.0)
    reader = fan.reader(100)
    engine.start()
    at = time.monotonic() + 0.1
    engine.note_on(60, 110, at)
    blocks = []
    while not blocks or blocks[-1].time_monotonic < at + 0.1:
        block = reader.read(5.0)
        assert block is not None
        blocks.append(block)
    engine.close()
    engine.stop()
    engine.stop()
    assert not engine.is_alive()
    assert 0.0 <= onset(blocks) - at < 0.02


def test_an_engine_that_never_ran_can_be_stopped() -> None:
    engine = SoundEngine(SoundFan())
    engine.note_on(60, 100, 0.0)
    engine.silence()
    engine.stop()
