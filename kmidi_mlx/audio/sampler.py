"""Notes become sound: block by block while they are played, or a whole piece at once."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.instrument import Instrument, piano
from kmidi_mlx.audio.voices import Voices
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes

__all__ = ["DEFAULT_POLYPHONY", "Sampler", "render"]

DEFAULT_POLYPHONY = 128
# Ordinary piano music peaks at half of full scale or a little above.
_GAIN = 0.6
# Samples that are computed together: more would fall out of the processor's cache.
_SPAN = 1024
# Samples after which voices that have died away are forgotten.
_CLEANING = 4096

_NOTE_OFF, _PEDAL_UP, _PEDAL_DOWN, _NOTE_ON, _ALL_OFF = range(5)


@dataclass(order=True)
class _Event:
    sample: int
    order: int
    kind: int = field(compare=False)
    pitch: int = field(compare=False, default=0)
    velocity: int = field(compare=False, default=0)


class Sampler:
    """Plays an instrument in stereo, in real time or faster.

    Events carry the sample at which they happen, counted from the first sample that `render_block`
    gave; those whose time has passed happen at once. The size of the blocks does not change the
    sound. A key that is struck while it sounds ends its earlier note. With more notes than
    `polyphony` the quietest fades out within 30 ms.

    Args:
        instrument: what to play; by default the grand piano of the package.
        sample_rate: samples a second, 8,000-192,000.
        polyphony: most voices at once, 1 or more; a stereo note of the piano is one voice.

    Raises:
        KmidiError: if a number is out of range.
    """

    def __init__(
        self,
        instrument: Instrument | None = None,
        sample_rate: int = 44_100,
        polyphony: int = DEFAULT_POLYPHONY,
    ) -> None:
        if not 8_000 <= sample_rate <= 192_000:
            raise KmidiError(f"sample_rate is {sample_rate}; give 8000 to 192000.")
        if polyphony < 1:
            raise KmidiError(f"polyphony is {polyphony}; give 1 or more.")
        self.instrument = instrument or piano()
        self.sample_rate = sample_rate
        self.polyphony = polyphony
        self._voices = Voices(self.instrument, sample_rate, _SPAN)
        self._events: list[_Event] = []
        self._count = 0
        self._position = 0
        self._pedal = False

    @property
    def position(self) -> int:
        """Number of samples rendered so far, which is the time of the next one."""
        return self._position

    @property
    def voices(self) -> int:
        """Number of voices that sound now."""
        return len(self._voices)

    @property
    def silent(self) -> bool:
        """Whether nothing sounds and nothing is to come."""
        return not self._voices.any_left and not self._events

    def note_on(self, pitch: int, velocity: int, at_sample: int = 0) -> None:
        """Strike a key; velocity 0 lets it go, as in MIDI.

        Args:
            pitch: MIDI pitch, 0-127.
            velocity: 0-127.
            at_sample: when.

        Raises:
            KmidiError: if a number is out of range.
        """
        if not 0 <= velocity <= 127:
            raise KmidiError(f"velocity is {velocity}; give 0 to 127.")
        self._add(_NOTE_ON if velocity else _NOTE_OFF, at_sample, pitch, velocity)

    def note_off(self, pitch: int, at_sample: int = 0) -> None:
        """Let a key go; it sounds on while the pedal is down.

        Args:
            pitch: MIDI pitch, 0-127.
            at_sample: when.

        Raises:
            KmidiError: if `pitch` is out of range.
        """
        self._add(_NOTE_OFF, at_sample, pitch)

    def sustain(self, down: bool, at_sample: int = 0) -> None:
        """Press the sustain pedal, or let it go.

        Args:
            down: whether it is down from now on.
            at_sample: when.
        """
        self._add(_PEDAL_DOWN if down else _PEDAL_UP, at_sample)

    def all_notes_off(self, at_sample: int = 0) -> None:
        """Let every key and the pedal go, and forget the events before then.

        Args:
            at_sample: when.
        """
        self._events = [event for event in self._events if event.sample > at_sample]
        heapq.heapify(self._events)
        self._add(_ALL_OFF, at_sample)

    def silence(self) -> None:
        """End everything within 30 ms, dampers or not, and forget every event that is to come."""
        self._events.clear()
        self._pedal = False
        self._voices.steal(self._position, len(self._voices))

    def render_block(self, count: int) -> NDArray[np.float32]:
        """Return the next samples.

        Args:
            count: how many, 0 or more.

        Returns:
            float32 (count, 2), left and right; many loud notes may exceed full scale, 1.
        """
        block = np.empty(count, np.complex64)
        done = 0
        while done < count:
            while self._events and self._events[0].sample <= self._position:
                self._apply(heapq.heappop(self._events))
            # at fixed times, so that the sound does not depend on the size of the blocks
            if self._position % _CLEANING == 0:
                self._voices.drop_silent(self._position)
            size = min(count - done, _SPAN, _CLEANING - self._position % _CLEANING)
            if self._events:
                size = min(size, self._events[0].sample - self._position)
            block[done : done + size] = self._voices.mix(self._position, size)
            self._position += size
            done += size
        block *= np.float32(_GAIN)
        return block.view(np.float32).reshape(count, 2)

    def _add(self, kind: int, at_sample: int, pitch: int = 0, velocity: int = 0) -> None:
        if not 0 <= pitch <= 127:
            raise KmidiError(f"pitch is {pitch}; give 0 to 127.")
        self._count += 1
        heapq.heappush(self._events, _Event(at_sample, self._count, kind, pitch, velocity))

    def _apply(self, event: _Event) -> None:
        voices, now = self._voices, self._position
        if event.kind == _NOTE_ON:
            voices.release_sustained(now, event.pitch)
            voices.release(now, event.pitch)
            layers = self.instrument.layers_of(event.pitch, event.velocity)[: self.polyphony]
            excess = len(voices) + len(layers) - self.polyphony
            if excess > 0:
                voices.steal(now, excess)
            for layer in layers:
                voices.start(layer, event.pitch, event.velocity, now)
        elif event.kind == _NOTE_OFF:
            voices.release(now, event.pitch, pedal=self._pedal)
        elif event.kind == _PEDAL_DOWN:
            self._pedal = True
        else:
            self._pedal = False
            voices.release_sustained(now)
            if event.kind == _ALL_OFF:
                voices.release(now, None)


def render(
    notes: Notes,
    instrument: Instrument | None = None,
    sample_rate: int = 44_100,
    seconds: float | None = None,
    polyphony: int = DEFAULT_POLYPHONY,
) -> NDArray[np.float32]:
    """Return the sound of a piece.

    Args:
        notes: n notes.
        instrument: what to play; by default the grand piano of the package.
        sample_rate: samples a second, 8,000-192,000.
        seconds: length of the result, >= 0; by default until the last note has died away.
        polyphony: most voices at once.

    Returns:
        float32 (samples, 2), left and right; many loud notes may exceed full scale, 1.

    Raises:
        KmidiError: if a number is out of range.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise KmidiError(f"cannot render {seconds} seconds; give 0 or more.")
    sampler = Sampler(instrument, sample_rate, polyphony)
    onset, offset = (
        np.rint(times * sample_rate).astype(np.int64)
        for times in (notes.onset_seconds, notes.offset_seconds)
    )
    offset = np.maximum(offset, onset + 1)
    pitches, velocities = notes.pitch.tolist(), notes.velocity.tolist()
    # ends before beginnings of the same time, so that a key struck again keeps its new note
    for pitch, end in zip(pitches, offset.tolist(), strict=True):
        sampler.note_off(pitch, end)
    for pitch, velocity, start in zip(pitches, velocities, onset.tolist(), strict=True):
        sampler.note_on(pitch, velocity, start)
    if seconds is not None:
        return sampler.render_block(round(seconds * sample_rate))
    blocks = [sampler.render_block(int(offset.max(initial=0)))]
    while not sampler.silent:
        blocks.append(sampler.render_block(_CLEANING))
    return np.concatenate(blocks)
