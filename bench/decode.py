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
        rng = np.random.default_rng(context)
        prompt = rng.integers(0, VOCABULARY_SIZE, context, dtype=np.uint16)
        self.stream = EventGenerator(model, sampling, prompt=prompt)

    def next(self) -> None:
        """Write and read one event."""
        self.stream.next_event()

    def wait(self) -> None:
        """Let the step that is under way end."""
        mx.synchronize()

    def build(self) -> None:
        """Build one step more; its event replaces the one not yet read."""
        stream = self.stream
        stream._pending = stream._queue_step()
        self._built = [stream._pending, stream._cache.keys, stream._cache.values, stream._state]

    def compute(self) -> None:
        """Compute what `build` left undone."""
        mx.eval(self._built)
        self._built = []


def our_kernels(model: EmotionMIDITransformer, sampling: SamplingConfig) -> int:
    """Kernels of one step with grammar and draw."""
    stream, counted = EventGenerator(model, sampling), Counter[str]()
    ready = [stream._cross, stream._knobs, stream._state, stream._last]
    mx.eval(ready, stream._cache.keys, stream._cache.values)

    def count_instead(*outputs: Any) -> None:
        counted.update(kernels.launching_primitives([part for _, part in tree_flatten(outputs)]))

    # the first step traces the graph, here with the stand-ins
    with kernels.fast_operations_as_one(), mock.patch.object(mx, "async_eval", count_instead):
        stream._queue_step()
    return counted.total()


class Peer:
    """mlx-lm's Llama with its own cache, sampler and generation loop."""

    def __init__(self, model: Any, context: int, sampling: SamplingConfig) -> None:
        from mlx_lm.generate import generate_step, generation_stream
        from mlx_lm.models.cache import make_prompt_cache

        self._model, self._sampler = model, peer_sampler(sampling)
        self._stream, self._cache = generation_stream, make_prompt_cache(model)
        prompt = np.random.default_rng(context).integers(0, VOCABULARY_SIZE, context)
        self._steps = generate_step(
            mx.array(prompt),
            model,
            max_tokens=-1,
            sampler=self._sampler,
            prompt_cache=self._cache,
        )

    def next(self) -> None:
        """Write and read one token."""
        next(self._steps)

    def wait(self) -> None:
        """Let the step that is under way end."""
        mx.synchronize(self._stream)

    def build(self) -> None:
        """Build one step more."""
        self._built = peer_step(self._model, self._cache, self._sampler, mx.array([60]))

    def compute(self) -> None:
        """Compute what `build` left undone."""
        mx.eval(self._built, [part.state[:2] for part in self._cache])


def peer_sampler(sampling: SamplingConfig) -> Callable[[mx.array], mx.array]:
    """mlx-lm's sampler with the settings that both sides know."""
    from mlx_lm.sample_utils import make_sampler

    return make_sampler(
        temp=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k,
    )


def peer_step(
    model: Any, cache: list[Any], sampler: Callable[[mx.array], mx.array], last: mx.array
) -> mx.array:
    """What mlx-lm's generation loop does for a token: model, log-probabilities, draw."""
    logits = model(last[None], cache=cache)[:, -1]
    return sampler(logits - mx.logsumexp(logits, keepdims=True))


def peer_model(config: MidiTransformerConfig, weights: int, dtype: mx.Dtype) -> Any:
    """Llama with our width, depth and heads; its feed-forward width makes the weights equal."""
    from mlx_lm.models.llama import Model, ModelArgs

    dim, layers = config.hidden_dim, config.num_layers
    others = config.vocab_size * dim + dim + layers * (4 * dim * dim + 2 * dim)
    ffn_dim = 8 * round((weights - others) / (3 * dim * layers) / 8)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=dim,
            num_hidden_layers=layers,
            intermediate_size=ffn_dim,
            num_attention_heads=config.num_heads,
            rms_norm_eps=config.norm_eps,
            vocab_size=config.vocab_size,
        )
    )
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def peer_kernels(model: Any, sampling: SamplingConfig) -> int:
    """Kernels of one of the peer's steps."""
    from mlx_lm.models.cache import make_prompt_cache

    cache, sampler = make_prompt_cache(model), peer_sampler(sampling)
    mx.eval(model(mx.array([[1, 2, 3]]), cache=cache), [part.state for part in cache])

    def build() -> list[mx.array]:
        token = peer_step(model, cache, sampler, last)
        return [token, *(array for part in cache for array in (part.keys, part.values))]

    last = mx.array([60])
    mx.eval(last)
    return kernels.count(build).total()


def measure(sides: Sequence[Ours | Peer], tokens: int) -> list[list[float]]:
    """Milliseconds of `tokens` steps of each side, which take turns."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        for _ in range(3):
            side.next()
        side.wait()
    while len(times[-1]) < tokens:
        for side, own in zip(sides, times, strict=True):
            side.next()  # is ready already: fills the pipeline
            own += [1e3 * _seconds(side.next) for _ in range(TURN)]
            side.wait()
    return times


def python_ms(side: Ours | Peer) -> float:
    """Time that Python needs to build a step's graph, before anything is computed."""
    side.wait()
    seconds = []
    with mock.patch.object(mx, "async_eval"):
        for _ in range(20):
            seconds.append(_seconds(side.build))
            side.compute()
    return 1e3 * float(np.median(seconds))


def run(args: argparse.Namespace) -> list[report.Row]:
    """Measure every context."""
    config, sampling = MidiTransformerConfig(), SamplingConfig(guidance_scale=args.guidance_scale)
    dtype = DTYPES[args.dtype]
    model = EmotionMIDITransformer(config)
    model.initialise(0)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    weights, bandwidth = weights_per_event(model), bandwidth_bytes_per_second()
    common: report.Row = {
        "dtype": args.dtype,
        "guidance_scale": args.guidance_scale,
        "weights_per_event": weights,
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "kernels": our_kernels(model, sampling),
    }
    peer = None
    if not args.no_peer:
        peer = peer_model(config, weights, dtype)
        common["peer_ffn_dim"] = peer.layers[0].mlp.gate_proj.weight.shape[0]
        common["peer_weights"] = sum(value.size for _, value in tree_flatten(peer.parameters()))
        common["peer_kernels"] = peer_kernels(peer, sampling)
    rows = []
    for context in args.contexts:
        sides: list[Ours | Peer] = [Ours(model, context, sampling)]
        if peer is not None:
            sides.append(Peer(peer, context, sampling))
        times = measure(sides, args.tokens)
        pieces = 1 if args.guidance_scale == 1 else 2
        held = min(context + args.tokens // 2, config.context_length)
        cache_bytes = pieces * 2 * config.num_layers * held * config.hidden_dim * dtype.size
        read = weights * dtype.size + cache_bytes
        floor = 1e3 * read / bandwidth
        row = common | {"context": context, "bytes_per_event": read, "floor_ms": floor}
        row |= report.spread("ms", times[0])
        row |= {"times_floor": row["ms"] / floor, "python_ms": python_ms(sides[0])}
        if peer is not None:
            row |= report.spread("peer_ms", times[1])
            row |= {
                "peer_python_ms": python_ms(sides[1]),
                "times_faster": row["peer_ms"] / row["ms"],
            }
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="events timed per context")
    parser.add_argument(
        "--contexts",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[64, 512, 1024, 2048],
        help="events held when timing starts",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision of weights")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1: no guidance")
    parser.add_argument("--no-peer", action="store_true", help="leave mlx-lm out")
    report.add_arguments(parser)
    args = parser.parse_args()
    rows = run(args)
    columns = [column for column in COLUMNS if column in rows[0]]
    report.publish("decode", rows, columns, args)


if __name__ == "__main__":
    main()
