"""The PyTorch decoder computes what the MLX one computes, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_mlx.models import kv_cache as ours_cache
from kmidi_mlx.models import midi_transformer as ours
from kmidi_mlx.music.events import INPUT_SIZE, VOCABULARY_SIZE

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import kv_cache as theirs_cache  # noqa: E402
from kmidi_torch.models import midi_transformer as theirs  # noqa: E402

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=3,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0, 2),
    norm_eps=1e-3,  # not the frameworks' own
)
Pair = tuple[ours.EmotionMIDITransformer, Any]
Loader = Callable[..., dict[str, NDArray[np.float32]]]
Compare = Callable[[Any, Any], float]


@pytest.fixture(scope="module")
def tiny(same_weights: Loader) -> Pair:
    pair = ours.EmotionMIDITransformer(TINY), theirs.EmotionMIDITransformer(TINY)
    same_weights(*pair)
    return pair


def random_tokens(count: int, batch: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, INPUT_SIZE, (batch, count)).astype(np.int32)


def conditions(batch: int, slots: int = 1, seed: int = 1) -> tuple[ours.Conditions, Any]:
    rng = np.random.default_rng(seed)
    emotion = rng.uniform(-1, 1, (batch, 64)).astype(np.float32)
    chords = rng.integers(0, TINY.num_chords, (batch, slots)).astype(np.int32)
    keys = rng.integers(0, TINY.num_keys, batch).astype(np.int32)
    arrays = (emotion, chords, keys)
    return (
        ours.Conditions(*(mx.array(array) for array in arrays)),
        theirs.Conditions(*(torch.from_numpy(array) for array in arrays)),
    )


def chord_index(count: int, batch: int, slots: int) -> NDArray[np.int32]:
    drawn = np.random.default_rng(2).integers(0, slots, (batch, count))
    return np.sort(drawn, axis=1).astype(np.int32)


def step_ours(
    model: ours.EmotionMIDITransformer, tokens: NDArray[np.int32], cross: Any, cache: Any
) -> mx.array:
    rows = []
    for column in tokens.T:
        cache.reserve(1)
        logits, cache.keys, cache.values = model.step(
            mx.array(column[:, None]), cache.next_place(), cache.keys, cache.values, cross
        )
        cache.offset += 1
        rows.append(logits)
    return mx.stack(rows, axis=1)


def step_theirs(model: Any, tokens: NDArray[np.int32], cross: Any, cache: Any) -> Any:
    rows = []
    for column in tokens.T:
        cache.reserve(1)
        logits, cache.keys, cache.values = model.step(
            torch.from_numpy(column[:, None].copy()),
            cache.next_place(),
            cache.keys,
            cache.values,
            cross,
        )
        cache.offset += 1
        rows.append(logits)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("config", [TINY, MidiTransformerConfig()], ids=["tiny", "default"])
def test_names_and_shapes_of_weights_are_equal(config: MidiTransformerConfig) -> None:
    mine = tree_flatten(ours.EmotionMIDITransformer(config).parameters())
    other = theirs.EmotionMIDITransformer(config).state_dict()
    assert {name: tuple(value.shape) for name, value in mine} == {
        name: tuple(value.shape) for name, value in other.items()
    }


@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_sequence(tiny: Pair, apart: Compare, batch: int) -> None:
    tokens, index = random_tokens(32, batch), chord_index(32, batch, 3)
    mine, other = conditions(batch, 3)
    expected = tiny[0](mx.array(tokens), mine, mx.array(index))
    found = tiny[1](torch.from_numpy(tokens), other, torch.from_numpy(index))
    assert np.array(expected).std() > 1  # the weights stress the model
    assert apart(expected, found) < 1e-4  # measured 7.6e-6


def test_far_from_the_start(same_weights: Loader, apart: Compare) -> None:
    config = replace(TINY, num_layers=1, context_length=2048, cross_attention_layers=(0,))
    pair = ours.EmotionMIDITransformer(config), theirs.EmotionMIDITransformer(config)
    same_weights(*pair)
    tokens, (mine, other) = random_tokens(2048, 1), conditions(1)
    index = np.zeros_like(tokens)
    expected = pair[0](mx.array(tokens), mine, mx.array(index))
    with torch.no_grad():
        found = pair[1](torch.from_numpy(tokens), other, torch.from_numpy(index))
    # measured 2.6e-5; 4.4e-4 in the 25M model when each framework made its own frequencies
    print("FAR", apart(expected, found))
    assert apart(expected, found) < 1e-4


@pytest.mark.parametrize("batch", [1, 2])
def test_steps_past_the_wrap_of_the_ring(
    tiny: Pair, apart: Compare, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ours_cache, theirs_cache):
        monkeypatch.setattr(module, "CAPACITY_STEP", 8)
        monkeypatch.setattr(module, "REBASE_CONTEXTS", 2)
    tokens, (mine, other) = random_tokens(110, batch), conditions(batch)
    caches = ours_cache.KVCache(TINY, batch), theirs_cache.KVCache(TINY, batch)
    expected = step_ours(tiny[0], tokens, tiny[0].cross_keys_values(mine), caches[0])
    found = step_theirs(tiny[1], tokens, tiny[1].cross_keys_values(other), caches[1])
    assert caches[0].offset == caches[1].offset < 110  # grown, wrapped and moved back
    assert caches[0].capacity == caches[1].capacity == 32
    assert apart(expected, found) < 1e-4  # measured 1.3e-5


@pytest.mark.parametrize("sizes", [[1, 7, 40, 3, 32, 27], [75, 1, 34]])
def test_prompts_in_chunks(tiny: Pair, apart: Compare, sizes: list[int]) -> None:
    tokens, (mine, other) = random_tokens(sum(sizes), 2), conditions(2)
    caches = ours_cache.KVCache(TINY, 2), theirs_cache.KVCache(TINY, 2)
    crosses = tiny[0].cross_keys_values(mine), tiny[1].cross_keys_values(other)
    for chunk in np.split(tokens, np.cumsum(sizes)[:-1], axis=1):
        expected = tiny[0].extend(mx.array(chunk), caches[0], crosses[0])
        found = tiny[1].extend(torch.from_numpy(chunk), caches[1], crosses[1])
        assert apart(expected, found) < 1e-4  # measured 1.7e-5
    assert caches[0].offset == caches[1].offset
    for mine_held, other_held in zip(caches[0].keys, caches[1].keys, strict=True):
        assert apart(mine_held, other_held) < 1e-4  # measured 9.7e-6


def test_steps_equal_the_whole_sequence(tiny: Pair, apart: Compare) -> None:
    # the two ways of adding a sink, of one and of many queries, are one
    tokens, (_, other) = random_tokens(32, 2, seed=5), conditions(2)
    index = torch.zeros((2, 32), dtype=torch.int32)
    whole = tiny[1](torch.from_numpy(tokens), other, index)
    cross = tiny[1].cross_keys_values(other)
    stepped = step_theirs(tiny[1], tokens, cross, theirs_cache.KVCache(TINY, 2))
    assert apart(whole.detach().numpy(), stepped) < 1e-4  # measured 1.1e-5


def test_an_emotion_without_cross_attention(same_weights: Loader, apart: Compare) -> None:
    config = replace(TINY, cross_attention_layers=())
    pair = ours.EmotionMIDITransformer(config), theirs.EmotionMIDITransformer(config)
    same_weights(*pair)
    tokens, (mine, other) = random_tokens(20, 1), conditions(1)
    index = np.zeros_like(tokens)
    expected = pair[0](mx.array(tokens), mine, mx.array(index))
    found = pair[1](torch.from_numpy(tokens), other, torch.from_numpy(index))
    assert apart(expected, found) < 1e-4  # measured 7.9e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(tiny: Pair, gradients_apart: Compare, checkpointing: bool) -> None:
    tokens, index = random_tokens(32, 2, seed=3), chord_index(32, 2, 3)
    mine, other = conditions(2, 3)
    targets = np.minimum(tokens[:, 1:], VOCABULARY_SIZE - 1)

    def loss(model: ours.EmotionMIDITransformer) -> mx.array:
        logits = model(mx.array(tokens), mine, mx.array(index))[:, :-1]
        return nn.losses.cross_entropy(logits, mx.array(targets), reduction="mean")

    expected_loss, expected = nn.value_and_grad(tiny[0], loss)(tiny[0])
    model = tiny[1]
    model.zero_grad()
    model.checkpoint_blocks = checkpointing
    logits = model(torch.from_numpy(tokens), other, torch.from_numpy(index))[:, :-1]
    model.checkpoint_blocks = False
    found_loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY_SIZE), torch.from_numpy(targets).long().reshape(-1)
    )
    found_loss.backward()
    assert found_loss.item() == pytest.approx(expected_loss.item(), abs=1e-5)
    assert gradients_apart(expected, model) < 1e-4  # measured 3.2e-6


def test_the_real_size(same_weights: Loader, apart: Compare) -> None:
    config = MidiTransformerConfig()
    pair = ours.EmotionMIDITransformer(config), theirs.EmotionMIDITransformer(config)
    same_weights(*pair)
    tokens, (mine, other) = random_tokens(24, 1), conditions(1)
    crosses = pair[0].cross_keys_values(mine), pair[1].cross_keys_values(other)
    caches = ours_cache.KVCache(config), theirs_cache.KVCache(config)
    expected = pair[0].extend(mx.array(tokens[:, :16]), caches[0], crosses[0])
    found = pair[1].extend(torch.from_numpy(tokens[:, :16]), caches[1], crosses[1])
    assert apart(expected, found) < 1e-4  # measured 4.9e-5
    expected = step_ours(pair[0], tokens[:, 16:], crosses[0], caches[0])
    found = step_theirs(pair[1], tokens[:, 16:], crosses[1], caches[1])
    assert apart(expected, found) < 1e-4  # measured 2.8e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_half(tiny: Pair, apart: Compare, dtype: str) -> None:
    half = theirs.EmotionMIDITransformer(TINY)
    half.load_state_dict(tiny[1].state_dict())
    half.to(getattr(torch, dtype))
    tokens, (_, other) = random_tokens(12, 1), conditions(1)
    cross = half.cross_keys_values(other)
    cache = theirs_cache.KVCache(TINY, dtype=getattr(torch, dtype))
    logits = step_theirs(half, tokens, cross, cache)
    assert logits.dtype == cache.keys[0].dtype == getattr(torch, dtype)
    exact = step_theirs(
        tiny[1], tokens, tiny[1].cross_keys_values(other), theirs_cache.KVCache(TINY)
    )
    bound = {"float16": 0.1, "bfloat16": 0.8}[dtype]  # measured 0.039, 0.17
    assert apart(exact.numpy(), logits.float()) < bound
    index = torch.zeros((1, 12), dtype=torch.int32)
    whole = half(torch.from_numpy(tokens), other, index)
    assert whole.dtype == getattr(torch, dtype)
    assert apart(exact.numpy(), whole.float()) < bound


def test_initialise_draws_as_mlx_does() -> None:
    mine, other = ours.EmotionMIDITransformer(TINY), theirs.EmotionMIDITransformer(TINY)
    mine.initialise(0)
    other.initialise(0)
    again = theirs.EmotionMIDITransformer(TINY)
    again.initialise(0)
    same = again.state_dict()
    for name, value in tree_flatten(mine.parameters()):
        drawn = other.state_dict()[name]
        assert torch.equal(drawn, same[name]), name
        if value.ndim < 2:
            np.testing.assert_array_equal(drawn.numpy(), np.array(value), err_msg=name)
        else:
            assert drawn.std().item() == pytest.approx(np.array(value).std(), rel=0.1), name
            assert abs(drawn.mean().item()) < 0.1 * drawn.std().item(), name
