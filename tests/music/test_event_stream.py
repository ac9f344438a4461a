"""The reader's side of a stream, over an engine whose model says nothing: the noise decides."""

from __future__ import annotations

import numpy as np
import pytest
from dice import Dice

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion, encode
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.event_stream import PREFILL_CHUNK
from kmidi_mlx.music.events import (
    NOTE_OFF,
    START_TOKEN,
    TIME_SHIFT,
    VELOCITY,
    decode,
    first_violation,
)
from kmidi_mlx.music.knobs import gumbel_noise, pack
from kmidi_mlx.music.piece import write_piece

HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
FREE = SamplingConfig()
GUIDED = SamplingConfig(guidance_scale=2.0)


def read(stream: Dice, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


def test_the_engine_is_one_event_ahead_and_reads_every_event_once() -> None:
    stream = Dice(64, FREE, 3)
    events = read(stream, 200)
    assert stream.model_read[0] == START_TOKEN
    assert stream.model_read[1:] == events
    assert len(stream.told("step")) == 201


def test_every_step_gets_the_next_noise_of_the_seed() -> None:
    stream = Dice(64, FREE, 7)
    read(stream, 149)
    rng = np.random.default_rng(7)
    expected = np.concatenate([gumbel_noise(rng, 64) for _ in range(3)])
    np.testing.assert_array_equal(stream.noises, expected[:150])
    stream.set_sampling(SamplingConfig(temperature=0.0))
    read(stream, 2)
    assert not np.any(stream.noises[-2:])


def test_guidance_adds_a_row_that_is_told_nothing() -> None:
    stream = Dice(64, FREE, 1, HAPPY, chord=5, key=2)
    assert stream.told("reset") == [1]
    ((emotion, chords, keys),) = stream.told("condition")
    np.testing.assert_array_equal(emotion, [encode(HAPPY)])
    assert (chords.tolist(), keys.tolist()) == ([[5]], [2])
    events = read(stream, 30)
    stream.set_sampling(GUIDED)
    assert stream.told("reset") == [2]
    ((emotion, chords, keys),) = stream.told("condition")
    np.testing.assert_array_equal(emotion, [encode(HAPPY), np.zeros(64)])
    assert (chords.tolist(), keys.tolist()) == ([[5], [0]], [2, 0])
    # the event that is drawn but not yet read is for the next step
    (tokens,) = stream.told("read")
    assert tokens.tolist() == 2 * [[START_TOKEN, *events]]
    stream.set_emotion(SAD)
    stream.set_harmony(7, 3)
    assert stream.told("condition") == []  # not before it is needed, and once for both
    read(stream, 5)
    ((emotion, chords, keys),) = stream.told("condition")
    np.testing.assert_array_equal(emotion, [encode(SAD), np.zeros(64)])
    assert (chords.tolist(), keys.tolist()) == ([[7], [0]], [3, 0])
    stream.set_sampling(SamplingConfig(guidance_scale=3.0))
    assert stream.told("reset") == []  # nothing to read again
    stream.set_sampling(FREE)
    assert stream.told("reset") == []
    assert len(stream.told("keep first")) == 1
    read(stream, 1)
    ((emotion, chords, keys),) = stream.told("condition")
    np.testing.assert_array_equal(emotion, [encode(SAD)])
    assert (chords.tolist(), keys.tolist()) == ([[7]], [3])


@pytest.mark.parametrize("length", [1, 2, 500, 700])
def test_the_model_reads_the_last_context_of_a_prompt(length: int) -> None:
    prompt = [TIME_SHIFT + 99 - i % 2 for i in range(length)]
    stream = Dice(600, SamplingConfig(max_rest_seconds=60.0), 1, prompt=prompt)
    chunks = stream.told("read")
    assert max(chunk.shape[1] for chunk in chunks) <= PREFILL_CHUNK
    read(stream, 1)
    assert stream.model_read[:-1] == [START_TOKEN, *prompt][-600:]
    assert stream.steps >= sum(event - TIME_SHIFT + 1 for event in prompt)


def test_a_velocity_is_followed_by_a_note_of_the_limits_it_was_drawn_under() -> None:
    old, new = SamplingConfig(), SamplingConfig(lowest_pitch=60, highest_pitch=60)
    stream = Dice(64, old, 2)
    read(stream, 1)
    while stream._last.item() < VELOCITY:
        read(stream, 1)
    stream.told("step")
    stream.set_sampling(new)
    stream.set_sampling(new)  # twice, and still the old limits were promised
    read(stream, 3)
    packed = stream.told("step")
    np.testing.assert_array_equal(packed, [pack(old), pack(new), pack(new)])


def test_a_piece_ends_on_time_and_changes_are_told_in_order() -> None:
    prompt = [VELOCITY + 9, 60, TIME_SHIFT + 49, 60 + NOTE_OFF]
    stream = Dice(64, SamplingConfig(max_rest_seconds=0.1), 5, HAPPY, prompt=prompt)
    stream.told("condition")
    heard: list[float] = []
    events = write_piece(stream, 3.0, prompt, [(2.0, HAPPY), (1.0, SAD)], heard.append)
    assert events[:4].tolist() == prompt
    assert events.dtype == np.uint16
    assert first_violation(events) is None
    assert 3.39 <= decode(events).duration_seconds <= 3.5
    assert heard == sorted(heard)
    assert heard[-1] == 3.0
    emotions = [arrays[0] for arrays in stream.told("condition")]
    np.testing.assert_array_equal(emotions, [[encode(SAD)], [encode(HAPPY)]])


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_length_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(KmidiError, match="give a number from 0 on"):
        write_piece(Dice(64, FREE), seconds)


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(KmidiError, match="event 1 of the prompt is 388; ids go from 0 to 387"):
        Dice(64, FREE, prompt=[60, START_TOKEN])
