"""Notes to sound by FluidSynth, for SoundFonts of the user's own.

FluidSynth (https://www.fluidsynth.org) plays all that a SoundFont can ask for; the package's own
sampler, which the live loop needs, plays the piano that the package carries. Needs the extra
`fluidsynth` and the system's library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes

__all__ = ["INSTALL", "FluidSynth"]

INSTALL = (
    "pip install 'kmidi-mlx[fluidsynth]' and the library: brew install fluid-synth on macOS, "
    "apt-get install libfluidsynth3 on Debian and Ubuntu."
)
_SAMPLE_RATE = 44_100
_CHANNEL = 0
_LONGEST_TAIL = 30 * _SAMPLE_RATE
_BLOCK = 4096
_FULL_SCALE = 32_768.0


class FluidSynth:
    """Plays a SoundFont's first preset, its grand piano in a General MIDI bank.

    Args:
        soundfont: an .sf2 or .sf3 file.

    Raises:
        KmidiError: if FluidSynth is not installed, or cannot read the file.
    """

    def __init__(self, soundfont: Path) -> None:
        self._bindings = _load_bindings()
        self.soundfont = soundfont
        if not soundfont.is_file():
            raise KmidiError(f"{soundfont}: there is no such file; give a SoundFont.")
        with self._synthesizer():
            pass  # answers for the file before the caller has worked for long

    def render(self, notes: Notes) -> NDArray[np.float32]:
        """Return the sound of a piece, until the last note has died away or for 30 s more.

        Args:
            notes: n notes.

        Returns:
            float32 (samples, 2), left and right in [-1, 1], 44,100 samples a second.
        """
        events = _events(notes)
        blocks = []
        with self._synthesizer() as synthesizer:
            now = 0
            for sample, _, pitch, velocity in events:
                if sample > now:
                    blocks.append(synthesizer.get_samples(sample - now))
                    now = sample
                if velocity:
                    synthesizer.noteon(_CHANNEL, pitch, velocity)
                else:
                    synthesizer.noteoff(_CHANNEL, pitch)
            for _ in range(0, _LONGEST_TAIL, _BLOCK):
                if not synthesizer.get_active_voice_count():
                    break
                blocks.append(synthesizer.get_samples(_BLOCK))
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
        return (samples.astype(np.float32) / _FULL_SCALE).reshape(-1, 2)

    @contextmanager
    def _synthesizer(self) -> Iterator[Any]:
        synthesizer = self._bindings.Synth(samplerate=_SAMPLE_RATE)
        try:
            number = synthesizer.sfload(str(self.soundfont))
            if number < 0 or synthesizer.program_select(_CHANNEL, number, 0, 0) < 0:
                raise KmidiError(
                    f"{self.soundfont}: FluidSynth finds no playable preset 0 of bank 0 in it; "
                    "give a SoundFont (.sf2 or .sf3) with a piano."
                )
            yield synthesizer
        finally:
            synthesizer.delete()


def _load_bindings() -> Any:
    try:
        import fluidsynth
    except ImportError as error:
        raise KmidiError(f"a SoundFont of your own needs FluidSynth ({error}): {INSTALL}") from None
    return fluidsynth


def _events(notes: Notes) -> list[tuple[int, int, int, int]]:
    """Sample, order, pitch and velocity (0: the end); ends come before beginnings."""
    events = []
    for onset, offset, pitch, velocity in zip(
        notes.onset_seconds.tolist(),
        notes.offset_seconds.tolist(),
        notes.pitch.tolist(),
        notes.velocity.tolist(),
        strict=True,
    ):
        start = round(onset * _SAMPLE_RATE)
        events.append((start, 1, pitch, velocity))
        events.append((max(start + 1, round(offset * _SAMPLE_RATE)), 0, pitch, 0))
    return sorted(events)
