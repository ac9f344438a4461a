"""A stream of events from the model: endless, steerable, seedable, always valid music."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import EventStream
from kmidi_mlx.music.knobs import unpack
from kmidi_mlx.music.piece import write_piece
from kmidi_torch.generation import sampler
from kmidi_torch.generation.decoder import Decoder, TorchDecoder
from kmidi_torch.models.midi_transformer import EmotionMIDITransformer


class EventGenerator(EventStream[Tensor]):
    """Writes music event by event with PyTorch; what it does for its reader: `EventStream`.

    Args:
        model: weights to use, or a `Decoder` of its own: a compiled or an exported model.
        sampling, seed, emotion, chord, key, prompt: as `EventStream`.

    Raises:
        KmidiError: when the prompt holds an id outside the vocabulary.
    """

    def __init__(
        self,
        model: EmotionMIDITransformer | Decoder,
        sampling: SamplingConfig,
        seed: int = 0,
        emotion: Emotion | None = None,
        chord: int = 0,
        key: int = 0,
        prompt: Sequence[int] | NDArray[np.integer] = (),
    ) -> None:
        self._decoder: Decoder = (
            TorchDecoder(model) if isinstance(model, EmotionMIDITransformer) else model
        )
        self._table = grammar.Tables(*(self._array(part) for part in grammar.tables()))
        context_length = self._decoder.context_length
        super().__init__(context_length, sampling, seed, emotion, chord, key, prompt)

    def _array(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._decoder.device)

    def _reset(self, rows: int) -> None:
        self._decoder.reset(rows)

    def _condition(
        self, emotion: NDArray[np.float32], chords: NDArray[np.int32], keys: NDArray[np.int32]
    ) -> None:
        self._decoder.condition(self._array(emotion), self._array(chords), self._array(keys))

    def _read(self, tokens: NDArray[np.int32]) -> None:
        self._decoder.read(self._array(tokens))

    def _forget(self, count: int) -> None:
        self._decoder.rewind(count)

    def _keep_first_row(self) -> None:
        self._decoder.keep_first_row()

    def _step(self, noise: NDArray[np.float32], knobs: Tensor) -> Tensor:
        logits = self._decoder.step(self._last)
        event = sampler.draw(logits, self._array(noise), self._state, unpack(knobs), self._table)
        self._state = grammar.advance(self._state, event, self._table, torch)
        return event


def generate(
    model: EmotionMIDITransformer | Decoder,
    sampling: SamplingConfig,
    seconds: float,
    *,
    seed: int = 0,
    emotion: Emotion | None = None,
    chord: int = 0,
    key: int = 0,
    prompt: Sequence[int] | NDArray[np.integer] = (),
    changes: Sequence[tuple[float, Emotion]] = (),
    on_time: Callable[[float], None] = lambda seconds: None,
) -> NDArray[np.uint16]:
    """Write a piece of `seconds` seconds (after the prompt, if any) and end all its notes.

    Args:
        model, sampling, seed, emotion, chord, key, prompt: as `EventGenerator`.
        seconds, changes, on_time: as `write_piece`.

    Returns:
        `(n,)` event ids, prompt first; always valid music if the prompt is.

    Raises:
        KmidiError: when `seconds` is negative or no number, or the prompt holds no event ids.
    """
    stream = EventGenerator(model, sampling, seed, emotion, chord, key, prompt)
    return write_piece(stream, seconds, prompt, changes, on_time)
