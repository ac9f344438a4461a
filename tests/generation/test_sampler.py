from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.generation import sampler
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY, VOCABULARY_SIZE
from kmidi_mlx.music.knobs import gumbel_noise, pack, unpack

TABLE = grammar.tables()
MLX_TABLE = [mx.array(part) for part in TABLE]
FREE = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
ZERO_NOISE = np.zeros(VOCABULARY_SIZE, np.float32)

State = NDArray[np.float32]
Logits = NDArray[np.float32]
seeds = st.integers(0, 2**31)
configs = st.builds(
    SamplingConfig,
    temperature=st.just(0.0) | st.floats(0.2, 3.0),
    top_k=st.just(0) | st.integers(1, 60),
    top_p=st.just(1.0) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    repetition_penalty=st.just(1.0) | st.floats(1.0, 4.0),
    guidance_scale=st.floats(0.0, 5.0),
    max_polyphony=st.integers(1, 6),
)


@mx.compile
def compiled_draw(
    logits: mx.array, noise: mx.array, state: mx.array, knobs: mx.array, table: list[mx.array]
) -> mx.array:
    return sampler.draw(logits, noise, state, unpack(knobs), grammar.Tables(*table))


def draw(logits: Logits, noise: Logits, state: State, config: SamplingConfig) -> int:
    event = compiled_draw(
        mx.array(logits), mx.array(noise), mx.array(state), mx.array(pack(config)), MLX_TABLE
    )
    assert event.shape == (1,)
    assert event.dtype == mx.int32
    return int(event.item())


def state_after(*events: int) -> State:
    state = grammar.initial_state()
    for event in events:
        state = grammar.advance(state, np.array([event]), TABLE, np)
    return state


def random_state(seed: int, config: SamplingConfig) -> State:
    """A state that random allowed events lead to."""
    rng, state = np.random.default_rng(seed), grammar.initial_state()
    for _ in range(rng.integers(0, 40)):
        events = np.flatnonzero(allowed(state, config))
        kinds = np.digitize(events, [NOTE_OFF, TIME_SHIFT, VELOCITY])
        event = rng.choice(events[kinds == rng.choice(np.unique(kinds))])
        state = grammar.advance(state, np.array([event]), TABLE, np)
    return state


def allowed(state: State, config: SamplingConfig) -> NDArray[np.bool_]:
    return grammar.allowed(state, grammar.limits_of(config), TABLE, np)[0]


def slow_law(logits: Logits, state: State, config: SamplingConfig) -> dict[int, float]:
    """Chance of every event that may be drawn, rule by rule."""
    scores = logits[0].astype(np.float64)
    if len(logits) == 2:
        scores = logits[1] + config.guidance_scale * (scores - logits[1])
    greedy = config.temperature == 0
    scored = {}
    for event in np.flatnonzero(allowed(state, config)).tolist():
        score = scores[event] - math.log(config.repetition_penalty) * state[grammar.RECENT, event]
        scored[event] = score / (1 if greedy else config.temperature)
    highest = max(scored.values())
    total = sum(math.exp(score - highest) for score in scored.values())
    chance = {event: math.exp(score - highest) / total for event, score in scored.items()}
    kept, mass = {}, 0.0
    for rank, event in enumerate(sorted(chance, key=lambda event: -chance[event])):
        likely = chance[event] >= config.min_p * max(chance.values())
        first = rank < (1 if greedy else config.top_k or VOCABULARY_SIZE)
        if rank == 0 or (first and likely and mass < config.top_p):
            kept[event] = scored[event]
        mass += chance[event]
    total = sum(math.exp(score - highest) for score in kept.values())
    return {event: math.exp(score - highest) / total for event, score in kept.items()}


@settings(max_examples=150, deadline=None)
@given(seeds, configs, st.integers(1, 2), st.sampled_from([0.1, 1.0, 5.0]))
def test_a_draw_equals_the_slow_law(
    seed: int, config: SamplingConfig, rows: int, scale: float
) -> None:
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    logits = (scale * rng.normal(size=(rows, VOCABULARY_SIZE))).astype(np.float32)
    noise = gumbel_noise(rng, 1)[0]
    law = slow_law(logits, state, config)
    slow = {event: math.log(chance) + float(noise[event]) for event, chance in law.items()}
    event = draw(logits, noise, state, config)
    assert event in law
    # float32 rounding may only decide between events that are as good as equal
    assert slow[event] >= max(slow.values()) - 1e-4


@pytest.mark.parametrize(
    "config",
    [
        FREE,
        SamplingConfig(temperature=0.7, top_k=12, top_p=0.9),
        SamplingConfig(temperature=1.5, top_k=0, top_p=1.0, min_p=0.2, repetition_penalty=2.0),
    ],
)
def test_many_draws_follow_the_law(config: SamplingConfig) -> None:
    count = 4000
    rng, state = np.random.default_rng(1), state_after(VELOCITY + 9, 60, TIME_SHIFT + 9)
    logits = (2 * rng.normal(size=(1, VOCABULARY_SIZE))).astype(np.float32)
    law = slow_law(logits, state, config)
    fixed = [mx.array(logits), mx.array(state), mx.array(pack(config))]
    noises = mx.array(gumbel_noise(rng, count))
    drawn = [
        compiled_draw(fixed[0], noises[i], fixed[1], fixed[2], MLX_TABLE) for i in range(count)
    ]
    counts = np.bincount(np.array(mx.concatenate(drawn)), minlength=VOCABULARY_SIZE)
    assert set(np.flatnonzero(counts).tolist()) <= set(law)
    for event, chance in law.items():
        spread = math.sqrt(count * chance * (1 - chance))
        assert abs(counts[event] - count * chance) < 5 * spread + 3, event


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_greedy_takes_the_likeliest_allowed_event(seed: int) -> None:
    config = SamplingConfig(temperature=0.0)
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    logits = rng.normal(size=(1, VOCABULARY_SIZE)).astype(np.float32)
    best = np.where(allowed(state, config), logits[0], -np.inf).argmax()
    assert draw(logits, ZERO_NOISE, state, config) == best


@pytest.mark.parametrize(
    "changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}]
)
def test_the_sharpest_settings_leave_one_event(changes: dict[str, float]) -> None:
    rng, state = np.random.default_rng(2), state_after(VELOCITY + 9, 60, TIME_SHIFT + 9)
    logits = rng.normal(size=(1, VOCABULARY_SIZE)).astype(np.float32)
    config = SamplingConfig(**{**vars(FREE), **changes})
    best = np.where(allowed(state, config), logits[0], -np.inf).argmax()
    for noise in gumbel_noise(rng, 20):
        assert draw(logits, noise, state, config) == best


def test_equal_events_are_cut_together() -> None:
    # which of two equals stays must not depend on the order of a sort
    state, rng = state_after(VELOCITY + 9), np.random.default_rng(3)
    logits = np.full((1, VOCABULARY_SIZE), -5.0, np.float32)
    logits[0, [40, 60, 80]] = 1.0
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    drawn = {draw(logits, noise, state, config) for noise in gumbel_noise(rng, 60)}
    assert drawn == {40, 60, 80}


def test_everything_equal_draws_from_everything() -> None:
    state, rng = state_after(VELOCITY + 9), np.random.default_rng(4)
    logits = np.zeros((1, VOCABULARY_SIZE), np.float32)
    drawn = {draw(logits, noise, state, FREE) for noise in gumbel_noise(rng, 600)}
    assert drawn <= set(range(21, 109))
    assert len(drawn) > 80


def test_a_struck_pitch_is_penalised() -> None:
    state = state_after(VELOCITY + 9, 60, TIME_SHIFT + 9, 60 + NOTE_OFF, 62)
    logits = np.full((1, VOCABULARY_SIZE), -9.0, np.float32)
    logits[0, [60, 64]] = [1.5, 1.0]
    greedy = SamplingConfig(temperature=0.0)
    assert draw(logits, ZERO_NOISE, state, greedy) == 60
    penalised = SamplingConfig(temperature=0.0, repetition_penalty=2.0)
    assert draw(logits, ZERO_NOISE, state, penalised) == 64


def test_guidance_moves_away_from_the_unconditional_model() -> None:
    logits = np.full((2, VOCABULARY_SIZE), -9.0, np.float32)
    logits[0, [60, 62]] = [1.0, 0.8]  # conditional: nearly equal
    logits[1, [60, 62]] = [1.0, 0.2]  # 62 is what the condition adds
    state = state_after(VELOCITY + 9)

    def guided(scale: float) -> int:
        config = SamplingConfig(temperature=0.0, guidance_scale=scale)
        return draw(logits, ZERO_NOISE, state, config)

    assert guided(1.0) == 60
    assert guided(2.0) == 62
    assert guided(0.0) == 60


HOSTILE = (np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0)


@settings(max_examples=150, deadline=None)
@given(seeds, configs, st.integers(1, 2), st.lists(st.sampled_from(HOSTILE), min_size=1))
def test_whatever_the_logits_the_event_is_allowed(
    seed: int, config: SamplingConfig, rows: int, values: list[float]
) -> None:
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    logits = rng.choice(np.array(values, np.float32), size=(rows, VOCABULARY_SIZE))
    if seed % 2:
        logits[:, rng.integers(0, VOCABULARY_SIZE, 300)] = 1.0
    noise = gumbel_noise(rng, 1)[0]
    assert allowed(state, config)[draw(logits, noise, state, config)]


@pytest.mark.parametrize("value", [np.nan, -np.inf, -3e38])
def test_an_unusable_logit_is_the_unlikeliest(value: float) -> None:
    state, rng = state_after(VELOCITY + 9), np.random.default_rng(5)
    logits = np.full((1, VOCABULARY_SIZE), value, np.float32)
    logits[0, [50, 70]] = [-8.0, -9.0]
    drawn = {draw(logits, noise, state, FREE) for noise in gumbel_noise(rng, 60)}
    assert drawn == {50, 70}


def test_half_precision_logits_are_drawn_in_single_precision() -> None:
    state, rng = state_after(VELOCITY + 9), np.random.default_rng(6)
    logits = rng.normal(size=(1, VOCABULARY_SIZE)).astype(np.float16)
    noise = gumbel_noise(rng, 1)[0]
    config = SamplingConfig(temperature=0.9)
    assert draw(logits, noise, state, config) == draw(
        logits.astype(np.float32), noise, state, config
    )
