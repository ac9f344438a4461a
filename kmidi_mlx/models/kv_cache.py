"""The key/value cache: a preallocated ring per layer, written in place.

Slot `p % capacity` holds position `p`. The ring grows in fixed steps up to the
model's context length, then wraps: the oldest event is overwritten and generation never ends.

Events can be taken back (`rewind`). Their slots are hidden until they are written again; what they
had overwritten is lost, so behind a full ring the past is shorter by as many events until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from kmidi_mlx.config import MidiTransformerConfig

# attention reads every slot, so steps are small; each size is one more compiled graph
CAPACITY_STEP = 128
# Rotary angles lose precision as positions grow; past this many contexts they are moved back.
REBASE_CONTEXTS = 4


class Place(NamedTuple):
    """Where one event goes: position `(1,)`, ring slot `(1,)`, slots it sees `(capacity,)`."""

    offset: mx.array
    slot: mx.array
    mask: mx.array


class KVCache:
    """Keys and values of the last `context_length` events of a batch of pieces.

    Attributes:
        keys, values: one array `(batch, num_heads, capacity, head_dim)` per layer.
        offset: position of the next event; positions are relative and may be moved back.
        capacity: slots allocated now.
        limit: slots at most, the model's context length.
    """

    def __init__(
        self, config: MidiTransformerConfig, batch_size: int = 1, dtype: mx.Dtype = mx.float32
    ) -> None:
        self.limit = config.context_length
        self.capacity = min(CAPACITY_STEP, self.limit)
        self.offset = 0
        # positions before this one were overwritten by events that are taken back by now
        self._oldest = 0
        self._rope_periods = config.rope_periods
        shape = (batch_size, config.num_heads, self.capacity, config.head_dim)
        self.keys = [mx.zeros(shape, dtype) for _ in range(config.num_layers)]
        self.values = [mx.zeros(shape, dtype) for _ in range(config.num_layers)]

    def reserve(self, count: int) -> None:
        """Make room for `count` more events: grow the ring, or move positions back.

        Call it before every `EmotionMIDITransformer.step` or `extend`.
        """
        if self.capacity < min(self.offset + count, self.limit):
            steps = -(-(self.offset + count) // CAPACITY_STEP)
            grown = min(steps * CAPACITY_STEP, self.limit)
            widths = [(0, 0), (0, 0), (0, grown - self.capacity), (0, 0)]
            self.keys = [mx.pad(array, widths) for array in self.keys]
            self.values = [mx.pad(array, widths) for array in self.values]
            self.capacity = grown
        if self.offset >= REBASE_CONTEXTS * self.limit:
            self._move_back((self.offset // self.limit - 1) * self.limit)

    def _move_back(self, shift: int) -> None:
        """Subtract `shift` (a multiple of `limit`, so slots stay) from every position."""
        half = self.keys[0].shape[-1] // 2
        angle = -shift * np.reciprocal(self._rope_periods).astype(np.float64)
        cos, sin = (
            mx.array(f(angle).astype(np.float32)).astype(self.keys[0].dtype)
            for f in (np.cos, np.sin)
        )

        def rotate(keys: mx.array) -> mx.array:
            first, second = keys[..., :half], keys[..., half:]
            return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

        self.keys = [rotate(keys) for keys in self.keys]
        self.offset -= shift
        self._oldest = max(0, self._oldest - shift)

    def rewind(self, count: int) -> None:
        """Take back the last `count` events, at most those that are held; nothing is computed.

        Raises:
            ValueError: when fewer events are held.
        """
        oldest = max(self._oldest, self.offset - self.capacity)
        if not 0 <= count <= self.offset - oldest:
            raise ValueError(f"cannot take back {count} of {self.offset - oldest} events")
        self._oldest = oldest
        self.offset -= count

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all pieces of the batch but these, which come in this order."""
        chosen = mx.array(rows)
        self.keys = [array[chosen] for array in self.keys]
        self.values = [array[chosen] for array in self.values]

    def next_place(self) -> Place:
        """Where the next event goes, made on the host so that the graph spends no kernel on it."""
        ages = (self.offset - np.arange(self.capacity)) % self.capacity
        mask = ages <= self.offset - self._oldest
        return Place(
            offset=mx.array([self.offset], dtype=mx.int32),
            slot=mx.array([self.offset % self.capacity], dtype=mx.int32),
            mask=mx.array(mask),
        )

    def slot_positions(self) -> mx.array:
        """Position held by each slot `(capacity,)`, int32; negative where nothing is held yet."""
        slots = mx.arange(self.capacity)
        last = self.offset - 1
        positions = last - (last - slots) % self.capacity
        return mx.where(positions < self._oldest, slots - self.capacity, positions)

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store the newest events' keys and values `(batch, num_heads, n, head_dim)`.

        `offset` is advanced by the caller after all layers are written.
        """
        count = keys.shape[2]
        kept = min(count, self.capacity)
        start = self.offset + count - kept
        slots = mx.arange(start, start + kept) % self.capacity
        self.keys[layer][:, :, slots] = keys[:, :, count - kept :]
        self.values[layer][:, :, slots] = values[:, :, count - kept :]

    @property
    def nbytes(self) -> int:
        """Bytes held by the ring now."""
        return sum(array.nbytes for array in self.keys + self.values)
