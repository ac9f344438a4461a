"""A draw in PyTorch is the draw in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.generation import sampler as ours
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY, VOCABULARY_SIZE
from kmidi_mlx.music.knobs import Knobs, gumbel_noise, pack, unpack

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.generation import sampler as theirs  # noqa: E402

TABLE = grammar.tables()
MLX_TABLE = [mx.array(part) for part in TABLE]
TORCH_TABLE = grammar.Tables(*(torch.from_numpy(part) for part in TABLE))
HOSTILE = (np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0)

State = NDArray[np.float32]
Logits = NDArray[np.float32]
seeds = st.integers(0, 2**31)
configs = st.builds(
    SamplingConfig,
    temperature=st.just(0.0) | st.floats(0.2, 3.0),
    top_k=st.just(0) | st.integers(1, 60),
    top_p=st.sampled_from([1.0, 1e-6]) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    repetition_penalty=st.just(1.0) | st.floats(1.0, 4.0),
    guidance_scale=st.floats(0.0, 5.0),
    max_polyphony=st.integers(1, 6),
    lowest_pitch=st.integers(0, 60),
    highest_pitch=st.integers(60, 127),
)


@mx.compile
def compiled_draw(
    logits: mx.array, noise: mx.array, state: mx.array, knobs: mx.array, table: list[mx.array]
) -> mx.array:
    return ours.draw(logits, noise, state, unpack(knobs), grammar.Tables(*table))


def draw_ours(logits: Logits, noise: Logits, state: State, config: SamplingConfig) -> int:
    arrays = (mx.array(array) for array in (logits, noise, state, pack(config)))
    return int(compiled_draw(*arrays, MLX_TABLE).item())


def draw_theirs(logits: Any, noise: Logits, state: State, config: SamplingConfig) -> int:
    event = theirs.draw(
        torch.as_tensor(logits),
        torch.from_numpy(noise),
        torch.from_numpy(state),
        unpack(torch.from_numpy(pack(config))),
        TORCH_TABLE,
    )
    assert event.shape == (1,)
    assert event.dtype == torch.int32
    return int(event.item())


def random_state(seed: int, config: SamplingConfig) -> State:
    """A state that random allowed events lead to."""
    rng, state = np.random.default_rng(seed), grammar.initial_state()
    limits = grammar.limits_of(config)
    for _ in range(rng.integers(0, 40)):
        events = np.flatnonzero(grammar.allowed(state, limits, TABLE, np)[0])
        kinds = np.digitize(events, [NOTE_OFF, TIME_SHIFT, VELOCITY])
        event = rng.choice(events[kinds == rng.choice(np.unique(kinds))])
        state = grammar.advance(state, np.array([event]), TABLE, np)
    return state


@settings(max_examples=150, deadline=None)
@given(seeds, configs, st.integers(1, 2), st.sampled_from([0.1, 1.0, 5.0, 30.0]))
def test_a_draw_equals_mlx(seed: int, config: SamplingConfig, rows: int, scale: float) -> None:
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    logits = (scale * rng.normal(size=(rows, VOCABULARY_SIZE))).astype(np.float32)
    noise = gumbel_noise(rng, 1)[0] * (config.temperature > 0)
    found = draw_theirs(logits, noise, state, config)
    if found == draw_ours(logits, noise, state, config):
        return
    # only where the last bits of a running sum decide: nudged by as much, PyTorch must differ too
    nudged = {
        draw_theirs(
            logits * (1 + 1e-6 * rng.normal(size=logits.shape)).astype(np.float32),
            noise,
            state,
            config,
        )
        for _ in range(20)
    }
    assert len(nudged) > 1


@settings(max_examples=100, deadline=None)
@given(seeds, configs, st.integers(1, 2), st.lists(st.sampled_from(HOSTILE), min_size=1))
def test_whatever_the_logits_the_event_is_that_of_mlx(
    seed: int, config: SamplingConfig, rows: int, values: list[float]
) -> None:
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    logits = rng.choice(np.array(values, np.float32), size=(rows, VOCABULARY_SIZE))
    noise = gumbel_noise(rng, 1)[0]
    event = draw_theirs(logits, noise, state, config)
    assert event == draw_ours(logits, noise, state, config)
    assert grammar.allowed(state, grammar.limits_of(config), TABLE, np)[0, event]


def test_no_cut_drops_the_likeliest_event() -> None:
    # a running sum that rounds past one must not either: as if top-p were below everything
    state, rng = random_state(1, SamplingConfig()), np.random.default_rng(1)
    logits = rng.normal(size=(1, VOCABULARY_SIZE)).astype(np.float32)
    packed = pack(SamplingConfig())
    packed[Knobs._fields.index("top_p")] = -1.0
    given = (logits, gumbel_noise(rng, 1)[0], state)
    tensors = [torch.from_numpy(array) for array in given]
    event = theirs.draw(*tensors, unpack(torch.from_numpy(packed)), TORCH_TABLE)
    open_to = grammar.allowed(state, grammar.limits_of(SamplingConfig()), TABLE, np)
    assert event.item() == np.where(open_to, logits, -np.inf).argmax()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_drawn_in_single_precision(dtype: Any) -> None:
    config = SamplingConfig(temperature=0.9)
    for seed in range(20):
        rng, state = np.random.default_rng(seed), random_state(seed, config)
        logits = torch.from_numpy(rng.normal(size=(1, VOCABULARY_SIZE))).to(dtype)
        noise = gumbel_noise(rng, 1)[0]
        expected = draw_theirs(logits.float(), noise, state, config)
        assert draw_theirs(logits, noise, state, config) == expected


@settings(max_examples=40, deadline=None)
@given(seeds, configs, st.sampled_from([torch.int32, torch.int64]))
def test_the_law_of_music_is_exact_in_tensors(
    seed: int, config: SamplingConfig, dtype: Any
) -> None:
    rng, state = np.random.default_rng(seed), random_state(seed, config)
    limits = unpack(torch.from_numpy(pack(config))).limits
    held = torch.from_numpy(state)
    for _ in range(10):
        expected = grammar.allowed(state, grammar.limits_of(config), TABLE, np)
        found = grammar.allowed(held, limits, TORCH_TABLE, torch)
        assert found.dtype == torch.bool
        np.testing.assert_array_equal(found.numpy(), expected)
        event = rng.choice(np.flatnonzero(expected[0]))
        state = grammar.advance(state, np.array([event]), TABLE, np)
        held = grammar.advance(held, torch.tensor([event], dtype=dtype), TORCH_TABLE, torch)
        assert held.dtype == torch.float32
        np.testing.assert_array_equal(held.numpy(), state)


class Draw(torch.nn.Module):  # type: ignore[misc]
    """Draw and law as an exported graph holds them."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in TORCH_TABLE._asdict().items():
            self.register_buffer(name, part)

    def forward(self, logits: Any, noise: Any, state: Any, knobs: Any) -> tuple[Any, Any]:
        table = grammar.Tables(self.ids, self.shift, self.velocity, self.effects, self.floor)
        event = theirs.draw(logits, noise, state, unpack(knobs), table)
        return event, grammar.advance(state, event.long(), table, torch)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_draw_can_be_exported(rows: int) -> None:
    config = SamplingConfig(guidance_scale=2.0, min_p=0.01)
    state, rng = grammar.initial_state(), np.random.default_rng(0)
    graph = None
    for _ in range(60):
        logits = (3 * rng.normal(size=(rows, VOCABULARY_SIZE))).astype(np.float32)
        noise = gumbel_noise(rng, 1)[0]
        given = [torch.from_numpy(a) for a in (logits, noise, state, pack(config))]
        if graph is None:
            exported = torch.export.export(Draw(), tuple(given), strict=True)
            # a shape or a branch that hangs on a value would show as a symbol of its own
            assert not exported.range_constraints
            graph = exported.module()
        event, after = graph(*given)
        assert event.item() == draw_ours(logits, noise, state, config)
        state = grammar.advance(state, event.numpy(), TABLE, np)
        np.testing.assert_array_equal(after.numpy(), state)
