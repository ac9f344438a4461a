"""The key/value cache: a preallocated ring per layer, written in place.

Slot `p % capacity` holds position `p`. The ring grows in fixed steps up to the
model's context length, then wraps: the oldest event is overwritten and generation never ends.

Events can be taken back (`rewind`). Their slots are hidden until they are written again; what they
had overwritten is lost, so behind a full ring the past is shorter by as many events until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kmidi_mlx.config import MidiTransformerConfig

# attention reads every slot, so steps are small; each size is one more compiled graph
CAPACITY_STEP = 128
# Rotary angles lose precision as positions grow; past this many contexts they are moved back.
REBASE_CONTEXTS = 4


class Place(NamedTuple):
    """Where one event goes: position `(1,)`, ring slot `(1,)`, slots it sees `(capacity,)`."""

    offset: Tensor
    slot: Tensor
    mask: Tensor


class KVCache:
    """Keys and values of the last `context_length` events of a batch of pieces.

    Attributes:
        keys, values: one tensor `(batch, num_heads, capacity, head_dim)` per layer.
        offset: position of the next event; positions are relative and may be moved back.
        capacity: slots allocated now.
        limit: slots at most, the model's context length.
    """

    def __init__(
        self,
        config: MidiTransformerConfig,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.limit = config.context_length
        self.capacity = min(CAPACITY_STEP, self.limit)
        self.offset = 0
        # positions before this one were overwritten by events that are taken back by now
        self._oldest = 0
        self._rope_periods = config.rope_periods
        shape = (batch_size, config.num_heads, self.capacity, config.head_dim)
        layers = range(config.num_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def reserve(self, count: int) -> None:
        """Make room for `count` more events: grow the ring, or move positions back.

        Call it before every `EmotionMIDITransformer.step` or `extend`.
        """
        if self.capacity < min(self.offset + count, self.limit):
            steps = -(-(self.offset + count) // CAPACITY_STEP)
            grown = min(steps * CAPACITY_STEP, self.limit)
            widths = (0, 0, 0, grown - self.capacity)
            self.keys = [functional.pad(tensor, widths) for tensor in self.keys]
            self.values = [functional.pad(tensor, widths) for tensor in self.values]
            self.capacity = grown
        if self.offset >= REBASE_CONTEXTS * self.limit:
            self._move_back((self.offset // self.limit - 1) * self.limit)

    def _move_back(self, shift: int) -> None:
        """Subtract `shift` (a multiple of `limit`, so slots stay) from every position."""
        half = self.keys[0].shape[-1] // 2
        angle = -shift * np.reciprocal(self._rope_periods).astype(np.float64)
        cos, sin = (self.keys[0].new_tensor(f(angle)) for f in (np.cos, np.sin))

        def rotate(keys: Tensor) -> Tensor:
            first, second = keys[..., :half], keys[..., half:]
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

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
        chosen = torch.tensor(rows, device=self.keys[0].device)
        self.keys = [array[chosen] for array in self.keys]
        self.values = [array[chosen] for array in self.values]

    def next_place(self) -> Place:
        """Where the next event goes, made on the host so that the graph spends no kernel on it."""
        device = self.keys[0].device
        ages = (self.offset - np.arange(self.capacity)) % self.capacity
        mask = ages <= self.offset - self._oldest
        return Place(
            offset=torch.tensor([self.offset], device=device),
            slot=torch.tensor([self.offset % self.capacity], device=device),
            mask=torch.tensor(mask, device=device),
        )

    def slot_positions(self) -> Tensor:
        """Position held by each slot `(capacity,)`; negative where nothing is held yet."""
        slots = torch.arange(self.capacity, device=self.keys[0].device)
        last = self.offset - 1
        positions = last - (last - slots) % self.capacity
        return torch.where(positions < self._oldest, slots - self.capacity, positions)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the newest events' keys and values `(batch, num_heads, n, head_dim)`.

        `offset` is advanced by the caller after all layers are written.
        """
        count = keys.shape[2]
        kept = min(count, self.capacity)
        start = self.offset + count - kept
        slots = torch.arange(start, start + kept, device=keys.device) % self.capacity
        self.keys[layer][:, :, slots] = keys[:, :, count - kept :]
        self.values[layer][:, :, slots] = values[:, :, count - kept :]

    @property
    def nbytes(self) -> int:
        """Bytes held by the ring now."""
        return sum(tensor.nbytes for tensor in self.keys + self.values)
