"""The proof that an export computes what its model does, on real music, in any runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kmidi_mlx.checkpoint_model import Loaded, label_temperature
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    SamplingConfig,
    SpectocloudConfig,
)
from kmidi_mlx.emotion import UNCONDITIONAL
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import NOISE_BLOCK
from kmidi_mlx.music.events import START_TOKEN
from kmidi_mlx.music.knobs import gumbel_noise, pack
from kmidi_torch.export.modules import GeneratorStep
from kmidi_torch.export.precision import Precision
from kmidi_torch.export.report import Difference
from kmidi_torch.export.ring import Run, StepRing
from kmidi_torch.export.samples import (
    EMOTION,
    Inputs,
    cloud_inputs,
    piece_ids,
    recognizer_inputs,
)
from kmidi_torch.generation.generator import EventGenerator
from kmidi_torch.models.emotion_recognizer import EmotionRecognizer
from kmidi_torch.models.kv_cache import CAPACITY_STEP, KVCache
from kmidi_torch.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_torch.models.spectocloud_vit import SpectocloudViT

__all__ = [
    "Drawing",
    "live_inputs",
    "prove_clouds",
    "prove_draws",
    "prove_recognizer",
    "prove_step",
]

_PROMPT = 96
_STEPS = 8
_CHUNK = 256
_DRAWS = 96
_LIVE_PLACES = 512


def prove_step(
    run: Run,
    loaded: Loaded[EmotionMIDITransformer, MidiGeneratorConfig],
    precision: Precision,
) -> list[Difference]:
    """Compare a generator step with the model and its own cache.

    A prompt without any place; then two pieces at once, under an emotion and under none, in chunks
    and event by event until long after the places are used again; then where positions end.

    Args:
        run: the exported step.
        loaded: the model.
        precision: of the export.
    """
    judge, cache = precision.judge, precision.cache
    limit = loaded.config.model.context_length
    found = _Read(loaded, run, rows=1, dtype=cache)
    differences = judge(*found.first(piece_ids(min(_PROMPT, limit))[None]), "whole prompt")
    ids = piece_ids(2 * limit)
    pieces = np.stack([ids, np.roll(ids, limit // 2)])
    found = _Read(loaded, run, rows=2, dtype=cache)
    # single events right before the wrap and right after it
    before = limit - _STEPS // 2 - 1
    # and where the ring grows
    prompt = max(1, min(CAPACITY_STEP - _STEPS // 2, before // 2))
    stages = {
        "prompt": [prompt],
        "event by event": [1] * _STEPS,
        "long prompt": _chunks(before - prompt - _STEPS),
        "past the wrap": [1] * _STEPS + [limit // 4] + [1] * _STEPS,
    }
    start, other = 0, []
    for stage, counts in stages.items():
        if not counts:  # a context so short that the wrap comes before
            continue
        end = start + sum(counts)
        expected, got = found.next(pieces[:, start:end], counts)
        differences += judge({"logits": expected}, {"logits": got}, f"two pieces, {stage}")
        other.append(expected.argmax(axis=-1) != got.argmax(axis=-1))
        start = end
    if precision.other_events:
        share = float(np.concatenate(other, axis=1).mean())
        what = "share of other greedy events, two pieces"
        differences.append(Difference(what, share, precision.other_events))
    differences += judge(*found.held(), "two pieces, in the end")
    differences += judge(*_at_the_last_position(run, loaded, cache), "last position")
    return differences


def _chunks(count: int) -> list[int]:
    return [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]


class _Read:
    """The same events read by the model with its cache and by an exported step with a ring."""

    def __init__(
        self,
        loaded: Loaded[EmotionMIDITransformer, MidiGeneratorConfig],
        run: Run,
        rows: int,
        dtype: type[np.floating],
    ) -> None:
        self._model, self._config = loaded.model, loaded.config.model
        self._run = run
        self._logits: list[NDArray[Any]] = []
        self._conditions = _conditions(rows)
        self._cache = KVCache(self._config, rows)
        self._ring = StepRing(self._listen, self._config, rows, dtype=dtype)
        self._dtype = dtype
        self._cross = self._model.cross_keys_values(
            Conditions(
                torch.from_numpy(self._conditions["emotion"]),
                torch.from_numpy(self._conditions["chord"])[:, None],
                torch.from_numpy(self._conditions["key"]),
            )
        )

    def _listen(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        found = self._run(inputs)
        self._logits.append(found["logits"])
        return found

    def first(self, ids: NDArray[np.int32]) -> tuple[Inputs, Inputs]:
        """Read a whole prompt with no place at all: the model's outputs, and the step's."""
        rows, count = ids.shape
        empty = _empty_cache(self._config, rows, 0, self._dtype)
        found = self._run(
            {"ids": ids, **self._conditions, "position": np.zeros(1, np.int32), **empty}
        )
        expected = {"logits": self._extend(ids), **self._cached(np.arange(count))}
        return expected, dict(found)

    def next(
        self, ids: NDArray[np.int32], counts: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read further events, so many at once; the logits of all."""
        self._logits.clear()
        expected = []
        for part in np.split(ids, np.cumsum(counts)[:-1], axis=1):
            self._ring.read(part, self._conditions)
            expected.append(self._extend(part))
        return np.concatenate(expected, axis=1), np.concatenate(self._logits, axis=1)

    def held(self) -> tuple[Inputs, Inputs]:
        """What both remember."""
        ring = self._ring
        order = np.argsort(ring.slots)[np.sum(ring.slots < 0) :]
        return self._cached(ring.slots[order]), {
            "new_keys": ring.keys[:, :, order],
            "new_values": ring.values[:, :, order],
        }

    def _extend(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._model.extend(
            torch.from_numpy(ids), self._cache, self._cross
        ).numpy()
        return logits

    def _cached(self, positions: NDArray[np.integer]) -> Inputs:
        slots = positions % self._cache.capacity
        return {
            "new_keys": torch.cat(self._cache.keys, dim=1).numpy()[:, :, slots],
            "new_values": torch.cat(self._cache.values, dim=1).numpy()[:, :, slots],
        }


def _conditions(rows: int) -> Inputs:
    """An emotion, a chord and a key, and in a second row none."""
    return {
        "emotion": np.stack([encode_emotion(EMOTION), UNCONDITIONAL][:rows]),
        "chord": np.array([5, 0][:rows], np.int32),
        "key": np.array([3, 0][:rows], np.int32),
    }


def _empty_cache(
    config: MidiTransformerConfig, rows: int, places: int, dtype: type[np.floating]
) -> Inputs:
    shape = (rows, config.num_layers * config.num_heads, places, config.head_dim)
    return {
        "slots": np.full(places, -1, np.int32),
        "past_keys": np.zeros(shape, dtype),
        "past_values": np.zeros(shape, dtype),
    }


def _at_the_last_position(
    run: Run,
    loaded: Loaded[EmotionMIDITransformer, MidiGeneratorConfig],
    cache: type[np.floating],
) -> tuple[Inputs, Inputs]:
    """Events at the end of what the rotary table knows, after places in no order, some too old."""
    config = loaded.config.model
    step = GeneratorStep(loaded.model)
    count, places, rng = 4, 24, np.random.default_rng(0)
    position = step.positions - count
    inputs = {
        "ids": piece_ids(count)[None],
        **_conditions(1),
        "position": np.array([position], np.int32),
        **_empty_cache(config, 1, places, cache),
    }
    ages = rng.permutation(np.linspace(-1, 1.3 * config.context_length, places).astype(np.int32))
    inputs["slots"] = np.where(ages < 1, -1, position - ages).astype(np.int32)
    for name in ("past_keys", "past_values"):
        inputs[name] = rng.normal(size=inputs[name].shape).astype(cache)
    with torch.no_grad():
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        *others, keys, values = tensors
        expected = step(*others, keys.float(), values.float())
    names = ("logits", "new_keys", "new_values")
    return {n: t.numpy() for n, t in zip(names, expected, strict=True)}, dict(run(inputs))


def prove_draws(
    run: Run,
    loaded: Loaded[EmotionMIDITransformer, MidiGeneratorConfig],
    precision: Precision,
) -> list[Difference]:
    """Compare drawn events with those of `EventGenerator`, of which the step reads every one.

    Args:
        run: the exported step with the draw.
        loaded: the model.
        precision: of the export.
    """
    default = SamplingConfig()
    asked = {
        "drawn": default,
        "guided": SamplingConfig(guidance_scale=2.0, top_k=0, min_p=0.02, repetition_penalty=1.3),
        "greedy": SamplingConfig(temperature=0.0),
    }
    table = grammar.tables()
    differences = []
    for number, (name, sampling) in enumerate(asked.items()):
        stream = EventGenerator(loaded.model, sampling, number, EMOTION, chord=5, key=3)
        rng = np.random.default_rng(number)
        noise = np.concatenate(
            [gumbel_noise(rng, NOISE_BLOCK) for _ in range(-(-_DRAWS // NOISE_BLOCK))]
        )
        step = Drawing(run, sampling)
        rows = 2 if sampling.guidance_scale != 1.0 else 1
        ring = StepRing(step, loaded.config.model, rows, dtype=precision.cache)
        event, wrong, state_error = START_TOKEN, 0, 0.0
        for row in noise[:_DRAWS]:
            step.noise = 0 * row if sampling.temperature == 0.0 else row
            ring.read(np.full((rows, 1), event, np.int32), _conditions(rows))
            event = stream.next_event()
            step.state = grammar.advance(step.state, np.array([event]), table, np)
            if step.event == event:
                state_error = max(state_error, float(np.abs(step.new_state - step.state).max()))
            else:
                wrong += 1
        differences.append(
            Difference(f"share of other events, {name}", wrong / _DRAWS, precision.other_events)
        )
        differences.append(Difference(f"new_state, {name}", state_error, 1e-4))
    return differences


class Drawing:
    """A step with the draw, as a `Run` without it.

    Args:
        run: the exported step with the draw.
        sampling: settings.

    Attributes:
        state, noise: what the next draw gets; at first those of silence and of no chance.
        event, new_state: what it gave.
    """

    def __init__(self, run: Run, sampling: SamplingConfig) -> None:
        self._run = run
        given = self.inputs(sampling)
        self.state: NDArray[Any] = given["state"]
        self.noise: NDArray[Any] = given["noise"]
        self._knobs = given["knobs"]
        self.event, self.new_state = -1, self.state

    @staticmethod
    def inputs(sampling: SamplingConfig) -> Inputs:
        """Return `state` of silence, `noise` that is none, `knobs`."""
        state = grammar.initial_state()
        return {
            "state": state,
            "noise": np.zeros(state.shape[1], np.float32),
            "knobs": pack(sampling),
        }

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Run the step and keep what was drawn."""
        given = {"state": self.state, "noise": self.noise, "knobs": self._knobs}
        found = dict(self._run({**inputs, **given}))
        self.event, self.new_state = int(found.pop("event")[0]), found.pop("new_state")
        return found


@torch.no_grad()
def prove_clouds(
    run: Run, loaded: Loaded[SpectocloudViT, SpectocloudConfig], points: int, precision: Precision
) -> list[Difference]:
    """Compare clouds of moments of a piece, one at a time and three at once."""
    constants = loaded.model.constants(points)
    differences = []
    for batch in (1, 3):
        inputs = cloud_inputs(batch)
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        expected = {"cloud": loaded.model(*tensors, constants).numpy()}
        differences += precision.judge(expected, run(inputs), f"batch of {batch}")
    return differences


@torch.no_grad()
def prove_recognizer(
    run: Run, loaded: Loaded[EmotionRecognizer, EmotionRecognizerConfig], precision: Precision
) -> list[Difference]:
    """Compare estimates of clips of two lengths; of three at once, two count in part."""
    model, config = loaded.model, loaded.config.model
    differences = []
    for batch, patches in ((1, 40), (3, 150)):
        inputs = recognizer_inputs(loaded.config, batch, patches * config.patch_frames)
        estimate = model(*(torch.from_numpy(value) for value in inputs.values()))
        expected = {"numbers": estimate.numbers.numpy()}
        if config.labels:
            logits = estimate.logits / label_temperature(loaded)
            expected["probabilities"] = torch.softmax(logits, dim=-1).numpy()
        if config.num_cues:
            expected["cues"] = estimate.cues.numpy()
        time = patches * config.patch_frames
        differences += precision.judge(expected, run(inputs), f"batch of {batch}, {time} frames")
    return differences


def live_inputs(
    loaded: Loaded[Any, Any], cache: type[np.floating] = np.float32
) -> tuple[Inputs, str]:
    """Return inputs of one call of what a live player calls, and what they are, in words."""
    if isinstance(loaded.config, SpectocloudConfig):
        return cloud_inputs(1), "one cloud"
    if isinstance(loaded.config, EmotionRecognizerConfig):
        seconds = 8.0
        data, patch = loaded.config.data, loaded.config.model.patch_frames
        frames = int(seconds * data.sample_rate / data.hop_length) // patch * patch
        return recognizer_inputs(loaded.config, 1, frames), f"one clip of {seconds:.0f} s"
    config = loaded.config.model
    places = min(_LIVE_PLACES, config.context_length - 1)
    inputs = {
        "ids": piece_ids(places + 1)[None, -1:],
        **_conditions(1),
        "position": np.array([places], np.int32),
        **_empty_cache(config, 1, places, cache),
    }
    inputs["slots"] = np.arange(places, dtype=np.int32)
    for name in ("past_keys", "past_values"):
        inputs[name] = np.random.default_rng(0).normal(size=inputs[name].shape).astype(cache)
    return inputs, f"one event after {places}"
