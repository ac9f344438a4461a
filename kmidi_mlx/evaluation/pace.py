"""How long a network needs for its unit of work; several models take turns.

Taking turns makes a noisy machine noisy for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from kmidi_mlx.config import EmotionRecognizerConfig, MidiGeneratorConfig, RunConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud import DEFAULT_POINTS

__all__ = ["Pace", "paces"]

_TURN = 8
_EVENTS_HELD = 512
_HEARD_SECONDS = 1.0


@dataclass(frozen=True)
class Pace:
    """How fast a model is.

    Attributes:
        unit: what it makes or takes.
        milliseconds: median time of a unit.
        quick_milliseconds, slow_milliseconds: 10th and 90th percentile; far apart where something
            else keeps the machine busy.
    """

    unit: str
    milliseconds: float
    quick_milliseconds: float
    slow_milliseconds: float


def paces(models: Sequence[nn.Module], config: RunConfig, turns: int = 6) -> list[Pace]:
    """Measure networks of one kind as they are used live: one at a time, compiled.

    Args:
        models: of the same sizes.
        config: of their run.
        turns: each has so many turns of eight units, and one before to compile.

    Raises:
        KmidiError: when it is not known how such a network is used.
    """
    makers = [_maker(model, config) for model in models]
    milliseconds: list[list[float]] = [[] for _ in models]
    for turn in range(turns + 1):
        for (_, make), own in zip(makers, milliseconds, strict=True):
            make()  # a generator is one event ahead: this one is ready already
            found = [_milliseconds(make) for _ in range(_TURN)]
            mx.synchronize()
            own += found if turn else []
    return [
        Pace(unit, *(float(np.percentile(own, share)) for share in (50, 10, 90)))
        for (unit, _), own in zip(makers, milliseconds, strict=True)
    ]


def _milliseconds(make: Callable[[], object]) -> float:
    begun = time.perf_counter()
    make()
    return 1e3 * (time.perf_counter() - begun)


def _maker(model: nn.Module, config: RunConfig) -> tuple[str, Callable[[], object]]:
    """Return what a unit is called, and what makes one."""
    if isinstance(model, EmotionMIDITransformer) and isinstance(config, MidiGeneratorConfig):
        stream = EventGenerator(model, config.sampling)
        stream.pretend(min(_EVENTS_HELD, model.config.context_length // 2))
        return "event", stream.next_event
    if isinstance(model, SpectocloudViT):
        network, sizes = Network(model, DEFAULT_POINTS), model.config
        rng = np.random.default_rng(0)
        window = rng.uniform(size=(sizes.mel_bands, sizes.window_frames)).astype(np.float32)
        features = rng.uniform(-1, 1, sizes.feature_dim).astype(np.float32)
        feeling = np.full(3, 0.5, np.float32)
        return "cloud", lambda: network.clouds(window, features, feeling)
    if isinstance(model, EmotionRecognizer) and isinstance(config, EmotionRecognizerConfig):
        frames = round(_HEARD_SECONDS * config.data.sample_rate / config.data.hop_length)
        state, sound = model.start(), mx.full((1, frames, model.bands), 0.35)
        return "second of sound", lambda: mx.eval(model.step(sound, state)[1].total)
    raise KmidiError(f"nothing is known of how a {type(model).__name__} is used.")
