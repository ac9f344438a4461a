"""A stream for tests whose model says nothing: the noise decides, within the laws of music."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import EventStream
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY, VOCABULARY_SIZE
from kmidi_mlx.music.knobs import unpack

TABLE = grammar.tables()
# as often as in music: a note, its end, some time
_LIKELY = np.zeros(VOCABULARY_SIZE, np.float32)
_LIKELY[NOTE_OFF:TIME_SHIFT] = 3.0
_LIKELY[TIME_SHIFT : TIME_SHIFT + 40] = 2.0
_LIKELY[VELOCITY:] = -1.0


class DiceStream(EventStream[NDArray[Any]]):
    """Draws the allowed event with the largest noise; a chord makes its own pitch the likeliest."""

    def __init__(self, context_length: int = 512, **named: Any) -> None:
        self.reads: list[int] = []
        self.chords: list[int] = []
        self.resets = 0
        super().__init__(context_length, named.pop("sampling", SamplingConfig()), **named)

    def _array(self, values: NDArray[Any]) -> NDArray[Any]:
        return values

    def _reset(self, rows: int) -> None:
        self.reads, self.chords = [], []
        self.resets += 1

    def _condition(self, *arrays: NDArray[Any]) -> None:
        self._chord = int(arrays[1][0, 0])

    def _read(self, tokens: NDArray[np.int32]) -> None:
        self.reads += tokens[0].tolist()
        self.chords += [self._chord] * tokens.shape[1]

    def _forget(self, count: int) -> None:
        for kept in (self.reads, self.chords):
            del kept[len(kept) - count :]

    def _keep_first_row(self) -> None:
        pass

    def _step(self, noise: NDArray[np.float32], knobs: NDArray[Any]) -> NDArray[Any]:
        self._read(self._last[None])
        open_to = grammar.allowed(self._state, unpack(knobs).limits, TABLE, np)
        scores = noise + _LIKELY + 9.0 * (np.arange(VOCABULARY_SIZE) == self._chord)
        event = np.where(open_to, scores, -np.inf).argmax(axis=-1)
        self._state = grammar.advance(self._state, event, TABLE, np)
        return event
