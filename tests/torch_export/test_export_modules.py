from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import UNCONDITIONAL, Emotion
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.music.events import TIME_SHIFT
from kmidi_torch.export import proof
from kmidi_torch.export.exportable import (
    Exportable,
    cloud_pass,
    generator_step,
    recognizer_pass,
)
from kmidi_torch.export.exported_decoder import ExportedDecoder
from kmidi_torch.export.modules import GeneratorStep, rms_norm
from kmidi_torch.export.precision import PRECISIONS
from kmidi_torch.export.ring import Run, StepRing
from kmidi_torch.export.samples import piece_ids
from kmidi_torch.generation.generator import EventGenerator
from kmidi_torch.loading import (
    LoadedGenerator,
    load_generator,
    load_recognizer,
    load_spectocloud,
)
from kmidi_torch.models.kv_cache import KVCache
from kmidi_torch.models.midi_transformer import Conditions, EmotionMIDITransformer

Arrays = Mapping[str, NDArray[Any]]


def eager(exportable: Exportable) -> Run:
    """The module that is exported, as it is."""

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[p.name])) for p in exportable.inputs]
        with torch.no_grad():
            found = exportable.module(*given)
        found = found if isinstance(found, tuple) else (found,)
        named = zip(exportable.outputs, found, strict=True)
        return {port.name: value.numpy() for port, value in named}

    return run


@pytest.fixture(scope="module")
def generator(tiny_checkpoints: dict[str, Path]) -> LoadedGenerator:
    return load_generator(tiny_checkpoints["midi_generator"])


@pytest.mark.parametrize(
    ("chunks", "places"), [(None, None), ((7, 1), 31), ((64, 4, 1), 40), ((16, 1), 31)]
)
def test_step_and_ring_are_the_model_and_its_cache(
    generator: LoadedGenerator, chunks: tuple[int, ...] | None, places: int | None
) -> None:
    """Over seven contexts: the ring wraps, positions move back."""
    config = generator.config.model
    ids = np.stack([piece_ids(230), np.roll(piece_ids(230), 50)])
    given = {
        "emotion": np.stack([encode_emotion(Emotion.of(0.5, -0.3)), UNCONDITIONAL]),
        "chord": np.array([5, 0], np.int32),
        "key": np.array([3, 0], np.int32),
    }
    ring = StepRing(eager(generator_step(generator)), config, rows=2, chunks=chunks, places=places)
    cache = KVCache(config, 2)
    cross = generator.model.cross_keys_values(
        Conditions(
            torch.from_numpy(given["emotion"]),
            torch.from_numpy(given["chord"])[:, None],
            torch.from_numpy(given["key"]),
        )
    )
    start = 0
    largest, spread = 0.0, 0.0
    for count in (20, 1, 1, 1, 40, 5, 1, 1, 1, 1, 1, 60, 1, 1, 90, 1, 1):
        part = ids[:, start : start + count]
        start += count
        expected = generator.model.extend(torch.from_numpy(part), cache, cross)[:, -1].numpy()
        largest = max(largest, float(np.abs(ring.read(part, given) - expected).max()))
        spread = max(spread, float(expected.std()))
    assert start > 7 * config.context_length
    assert ring.position == cache.offset < 5 * config.context_length
    assert spread > 0.5
    assert largest < 1e-4  # measured 6e-6


def test_what_a_ring_takes_back_is_forgotten(generator: LoadedGenerator) -> None:
    """A stream over an exported step takes events back as one over the model does."""
    config = generator.config.model
    sampling = SamplingConfig(temperature=1.0)
    streams = [
        EventGenerator(model, sampling, 3)
        for model in (
            generator.model,
            ExportedDecoder(eager(generator_step(generator)), config),
        )
    ]
    heard: list[list[int]] = [[], []]
    for stream, events in zip(streams, heard, strict=True):
        for count, back in ((12, 5), (18, 9), (8, 0), (3, 20)):
            events += [stream.next_event() for _ in range(count)]
            stream.rewind(min(back, stream.rewindable))
            stream.feed([TIME_SHIFT + 9])
    assert heard[0] == heard[1]
    for stream, events in zip(streams, heard, strict=True):
        stream.set_sampling(SamplingConfig(guidance_scale=2.0))
        events += [stream.next_event() for _ in range(5)]
        stream.set_sampling(sampling)
        events += [stream.next_event() for _ in range(20)]
    assert heard[0] == heard[1]
    # behind a full ring too, whatever was overwritten
    for _ in range(3):
        [streams[1].next_event() for _ in range(60)]
        streams[1].rewind(streams[1].rewindable)
        ring = streams[1]._decoder._ring  # type: ignore[attr-defined]
        assert ring.slots.max() < ring.position


def test_ring_grows_event_by_event(generator: LoadedGenerator) -> None:
    """A longer context than the ring begins with; every event is read alone."""
    run = generator.config
    longer = replace(
        run,
        model=replace(run.model, context_length=300),
        data=replace(run.data, sequence_length=300),
    )
    model = EmotionMIDITransformer(longer.model)
    model.load_state_dict(generator.model.state_dict())
    loaded = replace(generator, model=model.eval(), config=longer)
    silent = {"emotion": np.zeros((1, 64), np.float32), "chord": np.zeros(1, np.int32)}
    silent["key"] = silent["chord"]
    ring = StepRing(eager(generator_step(loaded)), longer.model)
    cache = KVCache(longer.model)
    cross = model.cross_keys_values(
        Conditions(torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1).int())
    )
    for event in piece_ids(320):
        expected = model.extend(torch.tensor([[event]]), cache, cross)[:, -1].numpy()
        found = ring.read(np.array([[event]], np.int32), silent)
        assert np.abs(found - expected).max() < 1e-4, ring.position
    assert len(ring.slots) == 299


def test_proof_holds_for_the_modules_themselves(
    generator: LoadedGenerator, tiny_checkpoints: dict[str, Path]
) -> None:
    exact = PRECISIONS["fp32"]
    cloud = load_spectocloud(tiny_checkpoints["spectocloud"])
    recognizer = load_recognizer(tiny_checkpoints["emotion_recognizer"])
    differences = [
        *proof.prove_step(eager(generator_step(generator)), generator, exact),
        *proof.prove_draws(eager(generator_step(generator, sampling=True)), generator, exact),
        *proof.prove_clouds(eager(cloud_pass(cloud, 60)), cloud, 60, exact),
        *proof.prove_recognizer(eager(recognizer_pass(recognizer)), recognizer, exact),
    ]
    assert len(differences) == 12 + 6 + 2 + 6
    assert [each for each in differences if not each.holds] == []


@pytest.mark.parametrize(
    ("output", "change"),
    [
        ("logits", 3e-4),
        ("new_keys", 3e-4),
        ("new_values", 3e-4),
    ],
)
def test_proof_fails_where_one_output_is_wrong(
    generator: LoadedGenerator, output: str, change: float
) -> None:
    right = eager(generator_step(generator))

    def wrong(inputs: Arrays) -> dict[str, NDArray[Any]]:
        found = right(inputs)
        found[output] = found[output] + np.float32(change)
        return found

    differences = proof.prove_step(wrong, generator, PRECISIONS["fp32"])
    assert not all(each.holds for each in differences if each.what.startswith(output))


def test_proof_fails_for_nan_and_for_a_wrong_shape(generator: LoadedGenerator) -> None:
    right = eager(generator_step(generator))
    for spoil in (lambda logits: logits * np.nan, lambda logits: logits[:, :, :-1]):

        def wrong(inputs: Arrays, spoil: Any = spoil) -> dict[str, NDArray[Any]]:
            found = right(inputs)
            return {**found, "logits": spoil(found["logits"])}

        for precision in PRECISIONS.values():
            expected = right(_first_inputs(generator))
            found = wrong(_first_inputs(generator))
            judged = precision.judge(expected, found, "now")
            assert not all(each.holds for each in judged), precision.name


def _first_inputs(generator: LoadedGenerator) -> dict[str, NDArray[Any]]:
    return proof.live_inputs(generator)[0]


@pytest.mark.parametrize("wrong_draw", ["event", "new_state"])
def test_proof_of_draws_sees_a_wrong_draw(generator: LoadedGenerator, wrong_draw: str) -> None:
    right = eager(generator_step(generator, sampling=True))
    calls = 0

    def wrong(inputs: Arrays) -> dict[str, NDArray[Any]]:
        nonlocal calls
        calls += 1
        found = right(inputs)
        if calls == 50:
            found[wrong_draw] = found[wrong_draw] + 1
        return found

    assert not all(each.holds for each in proof.prove_draws(wrong, generator, PRECISIONS["fp32"]))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0.0),
        SamplingConfig(),
        SamplingConfig(guidance_scale=1.7, repetition_penalty=1.2),
    ],
)
def test_decoder_writes_what_the_model_writes(
    generator: LoadedGenerator, sampling: SamplingConfig
) -> None:
    """300 events, past the wrap; the emotion and then guidance change meanwhile."""
    run = eager(generator_step(generator))
    prompt = piece_ids(30)[1:]
    streams = [
        EventGenerator(model, sampling, seed=3, emotion=Emotion.of(0.8, 0.1), prompt=prompt)
        for model in (generator.model, ExportedDecoder(run, generator.config.model))
    ]
    written: list[list[int]] = []
    for stream in streams:
        events = [stream.next_event() for _ in range(150)]
        stream.set_emotion(Emotion.of(-0.5, 0.6))
        stream.set_harmony(7, 4)
        events += [stream.next_event() for _ in range(100)]
        stream.set_sampling(SamplingConfig(guidance_scale=2.5))
        written.append(events + [stream.next_event() for _ in range(50)])
    assert written[0] == written[1]
    assert len(set(written[0])) > 5


def test_norm_in_half_precision_does_not_overflow() -> None:
    norm = torch.nn.RMSNorm(8, eps=1e-5).half()
    large = torch.full((1, 8), 585.0, dtype=torch.float16)
    assert torch.allclose(rms_norm(large, norm), torch.ones(1, 8, dtype=torch.float16), atol=1e-2)


def test_tables_hold_the_angles_of_the_model(generator: LoadedGenerator) -> None:
    """Far from the start the rounding of an angle shows: both have to round alike."""
    from kmidi_torch.models.layers import rope

    step = GeneratorStep(generator.model)
    periods = torch.tensor(generator.config.model.rope_periods)
    for position in (0, 31, step.positions - 1):
        one = torch.zeros(1, 1, 1, generator.config.model.head_dim)
        one[..., : one.shape[-1] // 2] = 1.0
        turned = rope(one, periods, position)[0, 0, 0]
        cos, sin = torch.chunk(turned, 2)
        assert torch.equal(step.get_buffer("_cos")[position], cos)
        assert torch.equal(step.get_buffer("_sin")[position], sin)
