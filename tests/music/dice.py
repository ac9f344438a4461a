"""A stream for tests whose model says nothing: the noise decides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import EventStream
from kmidi_mlx.music.knobs import unpack

TABLE = grammar.tables()


class Dice(EventStream[NDArray[Any]]):
    """Takes the allowed event with the largest noise, and writes down what it is told."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.noises: list[NDArray[np.float32]] = []
        self.model_read: list[int] = []
        super().__init__(*arguments, **named)

    def _array(self, values: NDArray[Any]) -> NDArray[Any]:
        return values

    def _reset(self, rows: int) -> None:
        self.calls.append(("reset", rows))
        self.model_read = []

    def _condition(self, *arrays: NDArray[Any]) -> None:
        self.calls.append(("condition", arrays))

    def _read(self, tokens: NDArray[np.int32]) -> None:
        self.calls.append(("read", tokens))
        self.model_read += tokens[0].tolist()

    def _forget(self, count: int) -> None:
        self.calls.append(("forget", count))
        del self.model_read[len(self.model_read) - count :]

    def _keep_first_row(self) -> None:
        self.calls.append(("keep first", None))

    def _step(self, noise: NDArray[np.float32], knobs: NDArray[Any]) -> NDArray[Any]:
        self.calls.append(("step", knobs))
        self.noises.append(noise)
        self.model_read.append(self._last.item())
        open_to = grammar.allowed(self._state, unpack(knobs).limits, TABLE, np)
        event = np.where(open_to, noise, -np.inf).argmax(axis=-1)
        self._state = grammar.advance(self._state, event, TABLE, np)
        return event

    def told(self, what: str) -> list[Any]:
        """What came with every call of a name, since the last time."""
        found = [value for name, value in self.calls if name == what]
        self.calls = [call for call in self.calls if call[0] != what]
        return found
