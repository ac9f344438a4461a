"""An exported generator as a decoder: the same stream of events over any runtime."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_torch.export.ring import Array, Run, StepRing


class ExportedDecoder:
    """An exported step as a `kmidi_torch.generation.decoder.Decoder`.

    `EventGenerator(ExportedDecoder(run, config), sampling)` writes the music that the model writes.

    Args:
        run: the exported step.
        config: of the model.
        chunks, places, dtype: as of `StepRing`.
    """

    def __init__(
        self,
        run: Run,
        config: MidiTransformerConfig,
        *,
        chunks: tuple[int, ...] | None = None,
        places: int | None = None,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self._run, self._config = run, config
        self._chunks, self._places, self._dtype = chunks, places, dtype
        self._conditions: dict[str, Array] = {}
        self.reset(1)

    @property
    def context_length(self) -> int:
        """Events that the model looks back on."""
        return self._config.context_length

    @property
    def device(self) -> torch.device:
        """Where logits arrive: on the host, wherever the runtime computes."""
        return torch.device("cpu")

    def reset(self, rows: int) -> None:
        """Start with an empty ring for `rows` copies of the piece."""
        self._rows = rows
        self._ring = StepRing(
            self._run,
            self._config,
            rows,
            chunks=self._chunks,
            places=self._places,
            dtype=self._dtype,
        )

    def condition(self, emotion: Tensor, chords: Tensor, keys: Tensor) -> None:
        """Take what steers from here on; see `Decoder`."""
        self._conditions = {
            "emotion": emotion.numpy().astype(np.float32),
            "chord": chords[:, 0].numpy().astype(np.int32),
            "key": keys.numpy().astype(np.int32),
        }

    def read(self, tokens: Tensor) -> None:
        """Read given input ids `(rows, n)`."""
        self._ring.read(tokens.numpy().astype(np.int32), self._conditions)

    def rewind(self, count: int) -> None:
        """Take back the last `count` ids."""
        self._ring.rewind(count)

    def keep_first_row(self) -> None:
        """Forget the second copy of the piece."""
        self._rows = 1
        self._ring.keep_first()

    def step(self, token: Tensor) -> Tensor:
        """Logits `(rows, 388)` of what follows input id `(1,)`."""
        tokens = np.repeat(token.numpy().astype(np.int32)[None], self._rows, axis=0)
        return torch.from_numpy(self._ring.read(tokens, self._conditions))
