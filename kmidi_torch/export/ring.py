"""What the caller of an exported generator step keeps: keys, values and the places they are in.

This is the reference for callers in other languages; `docs/exports.md` tells it in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_torch.models.kv_cache import CAPACITY_STEP, REBASE_CONTEXTS

__all__ = ["Run", "StepRing"]

Array = NDArray[np.generic]
#: Runs an exported step: inputs by name to `logits`, `new_keys`, `new_values`.
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class StepRing:
    """The last events of one batch, for a step that only reads its cache.

    Args:
        run: the exported step.
        config: of the model.
        rows: pieces in the batch.
        chunks: numbers of events that the step can read at once, largest first; None: any.
        places: number of places the step was exported for; None: any, so the ring grows.
        dtype: of keys and values.

    Attributes:
        position: of the next event.
        keys, values: `(rows, layers * heads, places, head_dim)`.
        slots: int32 `(places,)`, the position each place holds; negative: none.
    """

    def __init__(
        self,
        run: Run,
        config: MidiTransformerConfig,
        rows: int = 1,
        *,
        chunks: tuple[int, ...] | None = None,
        places: int | None = None,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self._run = run
        self._config = config
        self._chunks = chunks
        # an event sees itself and one less than the context before it
        self._most = config.context_length - 1 if places is None else places
        self.position = 0
        self._next = 0
        held = min(CAPACITY_STEP, self._most) if places is None else places
        shape = (rows, config.num_layers * config.num_heads, held, config.head_dim)
        self.keys, self.values = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.slots = np.full(held, -1, np.int32)

    def read(self, ids: NDArray[np.int32], conditions: Mapping[str, Array]) -> NDArray[np.float32]:
        """Read events and return the logits `(rows, 388)` after the last.

        Args:
            ids: `(rows, n)` input ids, at least one.
            conditions: `emotion`, `chord` and `key` as of `GeneratorStep`.
        """
        logits = np.empty(0, np.float32)
        for start, stop in self._cuts(ids.shape[1]):
            logits = self._read_chunk(ids[:, start:stop], conditions)
        return logits

    def rewind(self, count: int) -> None:
        """Take back the last `count` events; what they had overwritten stays lost.

        Events that are no longer held are taken back too: all of them were overwritten.
        """
        self.position -= count
        self._next -= count
        self.slots = np.where(self.slots < self.position, self.slots, -1).astype(np.int32)

    def keep_first(self) -> None:
        """Forget all pieces of the batch but the first."""
        self.keys, self.values = self.keys[:1].copy(), self.values[:1].copy()

    def _cuts(self, count: int) -> list[tuple[int, int]]:
        start, cuts = 0, []
        while start < count:
            left = count - start
            fitting = [size for size in self._chunks or (left,) if size <= left]
            cuts.append((start, start + fitting[0]))
            start += fitting[0]
        return cuts

    def _read_chunk(
        self, ids: NDArray[np.int32], conditions: Mapping[str, Array]
    ) -> NDArray[np.float32]:
        self._make_room(ids.shape[1])
        found = self._run(
            {
                "ids": ids,
                **conditions,
                "position": np.array([self.position], np.int32),
                "slots": self.slots,
                "past_keys": self.keys,
                "past_values": self.values,
            }
        )
        self._keep(found["new_keys"], found["new_values"])
        last: NDArray[np.float32] = found["logits"][:, -1].astype(np.float32)
        return last

    def _make_room(self, count: int) -> None:
        wanted = min(self.position + count, self._most)
        more = -(-wanted // CAPACITY_STEP) * CAPACITY_STEP
        more = min(more, self._most) - len(self.slots)
        if more > 0:
            widths = ((0, 0), (0, 0), (0, more), (0, 0))
            self.keys, self.values = np.pad(self.keys, widths), np.pad(self.values, widths)
            self.slots = np.pad(self.slots, (0, more), constant_values=-1)
        limit = self._config.context_length
        if self.position >= REBASE_CONTEXTS * limit:
            self._move_back((self.position // limit - 1) * limit)

    def _move_back(self, shift: int) -> None:
        """Subtract `shift` from every position: rotary positions are relative, tables end."""
        half = self._config.head_dim // 2
        angle = -shift * np.reciprocal(self._config.rope_periods).astype(np.float64)
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = self.keys[..., :half], self.keys[..., half:]
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        self.keys = turned.astype(self.keys.dtype)
        self.slots = np.where(self.slots < 0, -1, self.slots - shift).astype(np.int32)
        self.position -= shift

    def _keep(self, keys: Array, values: Array) -> None:
        count = keys.shape[2]
        kept = min(count, len(self.slots))
        where = (self._next + np.arange(kept)) % len(self.slots)
        self.keys[:, :, where] = keys[:, :, count - kept :]
        self.values[:, :, where] = values[:, :, count - kept :]
        self.slots[where] = self.position + np.arange(count - kept, count)
        # not modulo the places: the ring may grow before the next event comes
        self._next += kept
        self.position += count
