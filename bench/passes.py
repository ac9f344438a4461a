"""The passes that a frame of the live application is made of, counted on the real networks.

One event of the generator with grammar and draw, and one cloud of the Spectocloud network: fresh
networks of the default sizes, or checkpoints, in the precisions of `PRECISIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from bench import decode, kernels
from bench.machines import Work
from bench.traffic import Traffic, trace
from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig, SpectocloudVitConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.loading import load_generator, load_spectocloud
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud import DEFAULT_POINTS

#: By name: type of the networks, and bits of the generator's linear layers (0: not quantised).
PRECISIONS = {"fp32": (mx.float32, 0), "fp16": (mx.float16, 0), "8 bit": (mx.float16, 8)}
_GROUP = 64


@dataclass(frozen=True)
class Pass:
    """One pass of a network: its kernels and what else it asks for."""

    kernels: int
    traffic: Traffic

    def work(self, host_ms: float, overlaps: bool) -> Work:
        """For `predict`: the kernels with the copies."""
        traffic = self.traffic
        return Work(
            kernels=self.kernels + traffic.copies,
            held_bytes=traffic.weight_bytes + traffic.input_bytes,
            activation_bytes=traffic.activation_bytes,
            flops=traffic.flops,
            host_ms=host_ms,
            overlaps=overlaps,
        )

    def __str__(self) -> str:
        traffic = self.traffic
        return (
            f"{self.kernels} kernels and {traffic.copies} copies, "
            f"{traffic.weight_bytes / 1e6:.1f} MB of weights, "
            f"{traffic.input_bytes / 1e6:.1f} MB of inputs or cache, "
            f"{traffic.activation_bytes / 1e6:.1f} MB in between, {traffic.flops / 1e9:.3f} GFLOP"
        )


def generator(path: Path | None, precision: str) -> EmotionMIDITransformer:
    """Open the generator, or make a fresh one of the default sizes when `path` is None."""
    dtype, bits = PRECISIONS[precision]
    if path is None:
        model = EmotionMIDITransformer(MidiTransformerConfig())
        model.initialise(0)
        model.set_dtype(dtype)
    else:
        model = load_generator(path, dtype).model
    if bits:
        nn.quantize(model, _GROUP, bits, class_predicate=_quantisable)
    mx.eval(model.parameters())
    return model


def _quantisable(_: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.shape[-1] % _GROUP == 0


def cloud_network(path: Path | None, precision: str) -> SpectocloudViT:
    """Open the Spectocloud network, or make a fresh one of the default sizes."""
    dtype, _ = PRECISIONS[precision]
    if path is None:
        model = SpectocloudViT(SpectocloudVitConfig())
        model.initialise(0)
        model.set_dtype(dtype)
    else:
        model = load_spectocloud(path, dtype).model
    mx.eval(model.parameters())
    return model


def event_pass(model: EmotionMIDITransformer, context: int) -> Pass:
    """Count one event with grammar and draw, `context` events held.

    Raises:
        KmidiError: when the model does not look back so far.
    """
    limit = model.config.context_length
    if not 1 <= context <= limit:
        raise KmidiError(f"--context {context}: the model looks back on 1 to {limit} events.")
    sampling = SamplingConfig()
    stream = EventGenerator(model, sampling)
    cache, layers = stream._cache, model.config.num_layers
    cache.reserve(context)
    cache.offset = context - 1
    place, noise = cache.next_place(), mx.zeros((model.config.vocab_size,))
    ring = [*cache.keys, *cache.values]
    mx.eval(ring, noise, place, stream._cross, stream._state, stream._last, stream._knobs)

    def step(*ring: mx.array) -> list[mx.array]:
        event, keys, values, state = stream._compiled_step(
            stream._last,
            place,
            list(ring[:layers]),
            list(ring[layers:]),
            stream._cross,
            stream._state,
            noise,
            stream._knobs,
        )
        return [event, *keys, *values, state]

    return Pass(decode.our_kernels(model, sampling), trace(step, *ring))


def cloud_frame(
    model: SpectocloudViT, points: int = DEFAULT_POINTS
) -> tuple[Callable[..., list[mx.array]], list[mx.array]]:
    """One frame of the network as a function, and arguments for it."""
    config = model.config
    rng = np.random.default_rng(0)
    shapes = (
        (config.mel_bands, config.window_frames),
        (config.feature_dim,),
        (config.emotion_dim,),
    )
    given = [mx.array(rng.uniform(size=(1, *shape)).astype(np.float32)) for shape in shapes]
    constants = model.constants(points)
    mx.eval(given, constants.biases, constants.queries)

    def draw(windows: mx.array, features: mx.array, emotion: mx.array) -> list[mx.array]:
        return [model(windows, features, emotion, constants)]

    return draw, given


def cloud_pass(model: SpectocloudViT, points: int = DEFAULT_POINTS) -> Pass:
    """Count one compiled frame."""
    frame, given = cloud_frame(model, points)
    compiled = mx.compile(frame)
    return Pass(kernels.count(lambda: compiled(*given)).total(), trace(frame, *given))
