"""What maps an event to the logits of the next one, with a cache: the engine under a stream."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kmidi_torch.models.kv_cache import KVCache
from kmidi_torch.models.midi_transformer import Conditions, EmotionMIDITransformer


class Decoder(Protocol):
    """One piece being written: a model and what it remembers. A stream owns its decoder.

    Every call takes and returns tensors on `device`; ids are int32.

    Attributes:
        context_length: events that the model looks back on; older ones leave by themselves.
        device: where the event is drawn, too.
    """

    @property
    def context_length(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def reset(self, rows: int) -> None:
        """Forget every event; from now on work on `rows` (1 or 2) copies of the piece.

        `condition` is always called before the next event is read.
        """

    def condition(self, emotion: Tensor, chords: Tensor, keys: Tensor) -> None:
        """Take what steers from here on.

        Args:
            emotion: `(rows, 64)` vectors of `kmidi_mlx.emotion`, float32.
            chords: `(rows, 1)` chord ids, one for each row.
            keys: `(rows,)` key ids.
        """

    def read(self, tokens: Tensor) -> None:
        """Read input ids `(rows, n)` that are given, 0 < n <= 256; nobody needs their logits."""

    def rewind(self, count: int) -> None:
        """Forget the last `count` input ids that were read, as if they had never come.

        At most the context length; older ids that have left by themselves need not come back.
        """

    def keep_first_row(self) -> None:
        """Go on with the first row alone, what it read kept. `condition` is called next."""

    def step(self, token: Tensor) -> Tensor:
        """Read one input id `(1,)` in every row; return the logits `(rows, 388)` of what follows.

        Any floating type. The call need not wait for the result.
        """


class TorchDecoder:
    """The model itself, as a `Decoder`.

    Args:
        model: its weights decide precision and device.
        compiled: run `torch.compile`d steps, over a ring that has its full size from the start so
            that one graph serves all; worth it on a GPU and where a piece is long.
    """

    def __init__(self, model: EmotionMIDITransformer, compiled: bool = False) -> None:
        self._model = model
        self._compiled = compiled
        self._run = (
            torch.compile(model.step, fullgraph=True, dynamic=False) if compiled else model.step
        )

    @property
    def context_length(self) -> int:
        """Events that the model looks back on."""
        return self._model.config.context_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.embedding.weight.device

    def reset(self, rows: int) -> None:
        """Start with an empty ring for `rows` copies of the piece."""
        self._rows = rows
        dtype = self._model.embedding.weight.dtype
        self._cache = KVCache(self._model.config, rows, dtype, self.device)
        if self._compiled:
            self._cache.reserve(self.context_length)

    def condition(self, emotion: Tensor, chords: Tensor, keys: Tensor) -> None:
        """Make the cross-attention keys and values of what steers from here on."""
        self._cross = self._model.cross_keys_values(Conditions(emotion, chords, keys))

    def read(self, tokens: Tensor) -> None:
        """Read given input ids `(rows, n)`."""
        self._model.extend(tokens, self._cache, self._cross)

    def rewind(self, count: int) -> None:
        """Take back the last `count` ids."""
        self._cache.rewind(count)

    def keep_first_row(self) -> None:
        """Forget the second copy of the piece."""
        self._rows = 1
        self._cache.keep([0])

    def step(self, token: Tensor) -> Tensor:
        """Logits `(rows, 388)` of what follows input id `(1,)`."""
        cache = self._cache
        cache.reserve(1)
        logits, cache.keys, cache.values = self._run(
            token.expand(self._rows, 1), cache.next_place(), cache.keys, cache.values, self._cross
        )
        cache.offset += 1
        return logits
