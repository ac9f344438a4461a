"""Time of one written event against mlx-lm's Llama of the same size, in the same run.

`python -m bench.decode [--tokens N] [--contexts 64,512,1024,2048] [--dtype fp32|fp16]
[--guidance-scale X] [--no-peer] [--json FILE|-] [--save]`

Both write with a ring or cache that already holds `context` events, one step ahead of the reader,
with the same temperature, top-k and top-p; ours also keeps the laws of music. The two take turns
every few events, so that a noisy machine is noisy for both. The floor is the time that reading
the weights and the cache once takes at the memory bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from bench import kernels, report
from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.events import VOCABULARY_SIZE

DTYPES = {"fp32": mx.float32, "fp16": mx.float16}
TURN = 8
COLUMNS = (
    "context",
    "ms",
    "ms_p10",
    "ms_p90",
    "floor_ms",
    "times_floor",
    "python_ms",
    "kernels",
    "peer_ms",
    "peer_python_ms",
    "peer_kernels",
    "times_faster",
)
# conditions enter once per change, not once per event
ONCE = ("emotion_in", "emotion_out", "chord_embedding", "key_embedding", "context_norm", ".kv.")


def weights_per_event(model: EmotionMIDITransformer) -> int:
    """How many weights one step reads."""
    return sum(
        value.size
        for name, value in tree_flatten(model.parameters())
        if not any(part in name for part in ONCE)
    )


def bandwidth_bytes_per_second() -> float:
    """Fastest read of a large array: by MLX on its device, or by numpy on all cores."""
    size, cores = 2**26, os.cpu_count() or 1
    chunks = np.split(np.ones(size, np.int32), cores)
    on_device = mx.ones((size,), mx.int32)
    mx.eval(on_device)
    seconds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            seconds.append(_seconds(lambda: list(pool.map(np.max, chunks))))
            seconds.append(_seconds(lambda: mx.eval(mx.max(on_device))))
    return 4 * size / min(seconds)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Ours:
    """EventGenerator over a ring that holds `context` random events."""

    def __init__(
        self, model: EmotionMIDITransformer, context: int, sampling: SamplingConfig
    ) -> None:
        prompt = np.random.default_rng(context).integers(0, 256, context)
        self.stream = EventGenerator(model, sampling, prompt=prompt)

    def next(self) -> None:
        self.stream.next_event()

    def wait(self) -> None:
        mx.synchronize()

    def build(self) -> None:
        """Queue one step; the events are not kept."""
        self.stream._pending = self.stream._queue_step()

    def count_kernels(self) -> int:
        """Kernels of one step, which is built but not computed."""
        counted: Counter[str] = Counter()

        def count_instead(*outputs: Any) -> None:
            counted.update(kernels.launching_primitives([a for _, a in tree_flatten(outputs)]))

        stream = self.stream
        ready = [stream._cross, stream._knobs, stream._state, stream._last]
        mx.eval(ready, stream._cache.keys, stream._cache.values)
        fresh = mx.compile(lambda *inputs: inputs)  # never called: typing only
        del fresh
        with kernels.fast_operations_as_one(), mock.patch.object(mx, "async_eval", count_instead):
            stream._queue_step()
        return counted.total()
