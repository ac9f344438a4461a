from __future__ import annotations

import math
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from kmidi_mlx import emotion as em
from kmidi_mlx.config import MidiTransformerConfig
from kmidi_mlx.models import kv_cache
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, CrossKeysValues, EmotionMIDITransformer
from kmidi_mlx.music.events import INPUT_SIZE, VOCABULARY_SIZE

Weights = dict[str, NDArray[np.float64]]
TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)


def stress(model: EmotionMIDITransformer, seed: int = 0) -> EmotionMIDITransformer:
    """Weights that make every part count: unit-scale activations, sharp attention, odd gains."""
    rng = np.random.default_rng(seed)
    drawn = []
    for name, value in tree_flatten(model.parameters()):
        if "embedding" in name:
            array = 0.2 * rng.normal(size=value.shape)
        elif value.ndim == 2:
            array = rng.normal(size=value.shape) * (1.2 / math.sqrt(value.shape[1]))
        elif name.endswith(("bias", "sinks")):
            array = rng.normal(size=value.shape)
        else:
            array = 1 + 0.3 * rng.normal(size=value.shape)
        drawn.append((name, mx.array(array.astype(np.float32))))
    model.load_weights(drawn)
    return model


@cache
def tiny() -> EmotionMIDITransformer:
    return stress(EmotionMIDITransformer(TINY))


def weights_of(model: EmotionMIDITransformer) -> Weights:
    return {
        name: np.array(value.astype(mx.float32), dtype=np.float64)
        for name, value in tree_flatten(model.parameters())
    }


def random_tokens(seed: int, count: int, batch: int = 1) -> NDArray[np.int32]:
    shape = (batch, count)
    return np.random.default_rng(seed).integers(0, INPUT_SIZE, shape).astype(np.int32)


def conditions(batch: int = 1, slots: int = 1, seed: int = 3) -> Conditions:
    rng = np.random.default_rng(seed)
    return Conditions(
        emotion=mx.array(
            np.stack([em.encode(em.Emotion.of(*rng.uniform(-1, 1, 2))) for _ in range(batch)])
        ),
        chords=mx.array(rng.integers(0, TINY.num_chords, (batch, slots))),
        keys=mx.array(rng.integers(0, TINY.num_keys, batch)),
    )


def forward(
    model: EmotionMIDITransformer,
    tokens: NDArray[np.int32],
    given_conditions: Conditions,
    chord_index: NDArray[np.int32] | None = None,
) -> NDArray[np.float32]:
    index = np.zeros_like(tokens) if chord_index is None else chord_index
    return np.array(model(mx.array(tokens), given_conditions, mx.array(index)))


def by_steps(
    model: EmotionMIDITransformer,
    tokens: NDArray[np.int32],
    cross: CrossKeysValues,
    cache: KVCache,
) -> NDArray[np.float32]:
    """Logits `(batch, time, 388)` from one compiled step per event."""
    step = mx.compile(model.step)
    rows = []
    for column in tokens.T:
        cache.reserve(1)
        logits, cache.keys, cache.values = step(
            mx.array(column[:, None]), cache.next_place(), cache.keys, cache.values, cross
        )
        cache.offset += 1
        rows.append(np.array(logits))
    return np.stack(rows, axis=1)


def in_chunks(
    model: EmotionMIDITransformer,
    tokens: NDArray[np.int32],
    cross: CrossKeysValues,
    cache: KVCache,
    sizes: list[int],
) -> NDArray[np.float32]:
    """Logits `(batch, time, 388)` from `extend` in chunks of the given sizes, repeated."""
    rows, start, turn = [], 0, 0
    while start < tokens.shape[1]:
        chunk = tokens[:, start : start + sizes[turn % len(sizes)]]
        rows.append(np.array(model.extend(mx.array(chunk), cache, cross)))
        start, turn = start + chunk.shape[1], turn + 1
    return np.concatenate(rows, axis=1)


# A slow model written from the description alone: numpy, float64, the whole history at once.


def rms_norm(x: NDArray[np.float64], gain: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotated(x: NDArray[np.float64], base: float) -> NDArray[np.float64]:
    """Rotary embedding of `(time, head_dim)`, halves paired, position by position."""
    half = x.shape[1] // 2
    out = np.empty_like(x)
    for position in range(len(x)):
        for i in range(half):
            angle = position * base ** (-i / half)
            a, b = x[position, i], x[position, i + half]
            out[position, i] = a * math.cos(angle) - b * math.sin(angle)
            out[position, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(
    q: NDArray[np.float64],
    k: NDArray[np.float64],
    v: NDArray[np.float64],
    seen: NDArray[np.bool_],
    sink: float | None,
) -> NDArray[np.float64]:
    scores = np.where(seen, q @ k.T / math.sqrt(q.shape[1]), -np.inf)
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True) + (0.0 if sink is None else math.exp(sink))
    return weights / total @ v


def slow_context(w: Weights, config: MidiTransformerConfig, c: Conditions) -> NDArray[np.float64]:
    """Context tokens of the first piece of a batch."""
    hidden = w["emotion_in.weight"] @ np.array(c.emotion[0], np.float64) + w["emotion_in.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    tokens = (w["emotion_out.weight"] @ hidden + w["emotion_out.bias"]).reshape(
        config.emotion_tokens, config.hidden_dim
    )
    harmony = [
        w["chord_embedding.weight"][int(chord)] + w["key_embedding.weight"][int(c.keys[0])]
        for chord in np.array(c.chords[0])
    ]
    return rms_norm(np.concatenate([tokens, harmony]), w["context_norm.weight"], config.norm_eps)


def slow_logits(
    w: Weights,
    config: MidiTransformerConfig,
    tokens: NDArray[np.int32],
    c: Conditions,
    chord_index: NDArray[np.int32] | None = None,
) -> NDArray[np.float64]:
    """Logits `(time, 388)` of one piece of any length; each event sees the last context."""
    time, eps = len(tokens), config.norm_eps
    context = slow_context(w, config, c)
    age = np.arange(time)[:, None] - np.arange(time)[None]
    band = (age >= 0) & (age < config.context_length)
    slot = np.arange(len(context)) - config.emotion_tokens
    index = np.zeros(time) if chord_index is None else chord_index
    reach = (slot[None] < 0) | (slot[None] == index[:, None])
    x = w["embedding.weight"][tokens]
    heads = [slice(h * config.head_dim, (h + 1) * config.head_dim) for h in range(config.num_heads)]
    for layer in range(config.num_layers):
        name = f"blocks.{layer}."
        normed = rms_norm(x, w[name + "attention_norm.weight"], eps)
        q, k, v = np.split(normed @ w[name + "attention.qkv.weight"].T, 3, axis=1)
        base, sinks = config.rope_base, w[name + "attention.sinks"]
        found = [
            attention(rotated(q[:, h], base), rotated(k[:, h], base), v[:, h], band, sinks[i])
            for i, h in enumerate(heads)
        ]
        x = x + np.concatenate(found, axis=1) @ w[name + "attention.out.weight"].T
        if layer in config.cross_attention_layers:
            normed = rms_norm(x, w[name + "cross_norm.weight"], eps)
            q = normed @ w[name + "cross_attention.query.weight"].T
            k, v = np.split(context @ w[name + "cross_attention.kv.weight"].T, 2, axis=1)
            found = [attention(q[:, h], k[:, h], v[:, h], reach, None) for h in heads]
            x = x + np.concatenate(found, axis=1) @ w[name + "cross_attention.out.weight"].T
        normed = rms_norm(x, w[name + "ffn_norm.weight"], eps)
        gate, up = np.split(normed @ w[name + "ffn.gate_up.weight"].T, 2, axis=1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[name + "ffn.down.weight"].T
    return rms_norm(x, w["final_norm.weight"], eps) @ w["embedding.weight"][:VOCABULARY_SIZE].T


def difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.abs(a - b).max())


def test_the_default_model_has_25_million_parameters() -> None:
    model = EmotionMIDITransformer(MidiTransformerConfig())
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    assert count / 1e6 == pytest.approx(25.0, rel=0.02)


def test_the_whole_sequence_equals_the_slow_model() -> None:
    tokens, c = random_tokens(0, 32), conditions(slots=3)
    index = np.sort(np.random.default_rng(1).integers(0, 3, (1, 32)), axis=1).astype(np.int32)
    slow = slow_logits(weights_of(tiny()), TINY, tokens[0], c, index[0])
    assert slow.std() > 1  # the weights stress the model
    assert difference(forward(tiny(), tokens, c, index)[0], slow) < 1e-4  # measured 6.5e-6


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 32),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_extend_and_step_equal_the_whole_sequence(
    count: int, sizes: list[int], batch: int, seed: int
) -> None:
    tokens, c = random_tokens(seed, count, batch), conditions(batch)
    cross = tiny().cross_keys_values(c)
    whole = forward(tiny(), tokens, c)
    chunked = in_chunks(tiny(), tokens, cross, KVCache(TINY, batch), sizes)
    stepped = by_steps(tiny(), tokens, cross, KVCache(TINY, batch))
    assert difference(chunked, whole) < 1e-4  # measured 0
    assert difference(stepped, whole) < 1e-4  # measured 0


@pytest.mark.parametrize("capacity_step", [8, 256])
@pytest.mark.parametrize("sizes", [[], [1], [7], [32], [50, 3]])
def test_the_ring_equals_recomputing_the_whole_history(
    monkeypatch: pytest.MonkeyPatch, capacity_step: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", capacity_step)
    tokens, c = random_tokens(5, 110), conditions()  # wraps three times
    cross, cache = tiny().cross_keys_values(c), KVCache(TINY)
    assert cache.capacity == min(capacity_step, 32)
    if sizes:
        fast = in_chunks(tiny(), tokens, cross, cache, sizes)[0]
    else:
        fast = by_steps(tiny(), tokens, cross, cache)[0]
    slow = slow_logits(weights_of(tiny()), TINY, tokens[0], c)
    assert cache.capacity == 32
    assert difference(fast, slow) < 1e-4  # measured 2.6e-5


def test_the_band_matters_to_the_ring_proof() -> None:
    # the same proof fails against a history that is one event shorter or longer
    tokens, c, weights = random_tokens(5, 110), conditions(), weights_of(tiny())
    right = slow_logits(weights, TINY, tokens[0], c)
    for length in (31, 33):
        other = MidiTransformerConfig(**{**vars(TINY), "context_length": length})
        assert difference(slow_logits(weights, other, tokens[0], c), right) > 0.01


def test_positions_moved_back_change_nothing() -> None:
    tokens, c = random_tokens(6, 150), conditions()
    cross = tiny().cross_keys_values(c)
    slow = slow_logits(weights_of(tiny()), TINY, tokens[0], c)
    cache = KVCache(TINY)
    parts = [by_steps(tiny(), tokens[:, :100], cross, cache)]
    cache._move_back(64)
    assert cache.offset == 36
    parts.append(by_steps(tiny(), tokens[:, 100:110], cross, cache))
    parts.append(in_chunks(tiny(), tokens[:, 110:], cross, cache, [40]))
    assert difference(np.concatenate(parts, axis=1)[0], slow) < 1e-4  # measured 2.4e-5


def test_positions_stay_small_for_ever() -> None:
    tokens, c = random_tokens(7, 300), conditions()
    cross, cache, highest = tiny().cross_keys_values(c), KVCache(TINY), 0
    rows = []
    for start in range(0, 300, 10):
        rows.append(by_steps(tiny(), tokens[:, start : start + 10], cross, cache))
        highest = max(highest, cache.offset)
    assert highest <= (kv_cache.REBASE_CONTEXTS + 1) * 32 < 300
    slow = slow_logits(weights_of(tiny()), TINY, tokens[0], c)
    assert difference(np.concatenate(rows, axis=1)[0], slow) < 1e-4  # measured 2.4e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 30), st.integers(0, INPUT_SIZE - 1))
def test_a_later_event_never_changes_earlier_logits(position: int, event: int) -> None:
    tokens, c = random_tokens(8, 32), conditions()
    before = forward(tiny(), tokens, c)
    changed = tokens.copy()
    changed[0, position + 1] = (tokens[0, position + 1] + 1 + event % (INPUT_SIZE - 1)) % INPUT_SIZE
    after = forward(tiny(), changed, c)
    np.testing.assert_array_equal(before[:, : position + 1], after[:, : position + 1])
    assert np.abs(before[:, position + 1 :] - after[:, position + 1 :]).max() > 1e-3


def test_the_pieces_of_a_batch_do_not_meet() -> None:
    tokens, c = random_tokens(9, 20, batch=3), conditions(3, slots=2)
    index = (np.arange(20) // 10 * np.ones((3, 1))).astype(np.int32)
    together = forward(tiny(), tokens, c, index)
    for row in range(3):
        own = Conditions(*(part[row : row + 1] for part in (c.emotion, c.chords, c.keys)))
        alone = forward(tiny(), tokens[row : row + 1], own, index[row : row + 1])
        assert difference(together[row], alone[0]) < 1e-4


def test_a_chord_only_reaches_the_positions_that_name_it() -> None:
    config = MidiTransformerConfig(**{**vars(TINY), "num_layers": 1})
    model = stress(EmotionMIDITransformer(config))  # one block: nothing passes between positions
    tokens, c = random_tokens(10, 24), conditions(slots=3)
    index = (np.arange(24) // 8)[None].astype(np.int32)
    before = forward(model, tokens, c, index)
    chords = np.array(c.chords)
    chords[0, 1] = (chords[0, 1] + 1) % TINY.num_chords
    after = forward(model, tokens, Conditions(c.emotion, mx.array(chords), c.keys), index)
    changed = np.abs(before - after).max(axis=(0, 2)) > 1e-3
    np.testing.assert_array_equal(changed, index[0] == 1)


def test_a_chord_never_changes_what_came_before_it() -> None:
    tokens, c = random_tokens(11, 24), conditions(slots=2)
    index = (np.arange(24) >= 12)[None].astype(np.int32)
    before = forward(tiny(), tokens, c, index)
    other = Conditions(c.emotion, mx.array([[int(c.chords[0, 0]), 1]]), c.keys)
    after = forward(tiny(), tokens, other, index)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert np.abs(before[:, 12:] - after[:, 12:]).max() > 1e-3


def test_every_condition_is_heard() -> None:
    tokens = random_tokens(12, 16)

    def logits(vector: NDArray[np.float32], chord: int = 0, key: int = 0) -> NDArray[np.float32]:
        c = Conditions(mx.array(vector[None]), mx.array([[chord]]), mx.array([key]))
        return forward(tiny(), tokens, c)

    neutral = em.encode(em.Emotion.of(0.0, 0.0))
    heard = [
        logits(em.UNCONDITIONAL),
        logits(neutral),
        logits(em.encode(em.Emotion.of(0.8, 0.5))),
        logits(em.encode(em.Emotion.of(-0.8, 0.5))),
        logits(neutral, chord=2),
        logits(neutral, key=2),
    ]
    for i, first in enumerate(heard):
        for second in heard[:i]:
            assert difference(first, second) > 0.01


def test_gradients_reach_every_parameter() -> None:
    model = stress(EmotionMIDITransformer(TINY))
    tokens, c = mx.array(random_tokens(13, 20)), conditions(slots=2)
    index = mx.array((np.arange(20) // 10)[None])

    def loss(m: EmotionMIDITransformer) -> mx.array:
        targets = mx.minimum(tokens[:, 1:], VOCABULARY_SIZE - 1)
        return nn.losses.cross_entropy(m(tokens, c, index)[:, :-1], targets, reduction="mean")

    _, gradients = nn.value_and_grad(model, loss)(model)
    names = {name for name, _ in tree_flatten(model.parameters())}
    reached = tree_flatten(gradients)
    assert {name for name, _ in reached} == names
    assert {"blocks.0.attention.sinks", "blocks.1.attention.sinks"} <= names
    for name, gradient in reached:
        values = np.array(gradient)
        assert np.isfinite(values).all(), name
        assert np.abs(values).max() > 0, name


def test_gradient_of_the_sinks_is_right() -> None:
    # central differences of the slow model
    tokens, c, name = random_tokens(14, 12), conditions(), "blocks.1.attention.sinks"
    weights = weights_of(tiny())

    def slow_loss(value: NDArray[np.float64]) -> float:
        logits = slow_logits({**weights, name: value}, TINY, tokens[0], c)
        return float(np.log(np.exp(logits).sum(-1)).mean())

    def loss(parameters: mx.array) -> mx.array:
        changed = {**dict(tree_flatten(tiny().parameters())), name: parameters}
        model = EmotionMIDITransformer(TINY)
        model.update(tree_unflatten(list(changed.items())))
        logits = model(mx.array(tokens), c, mx.zeros(tokens.shape, mx.int32))
        return mx.logsumexp(logits, axis=-1).mean()

    sinks = weights[name]
    exact = np.array(mx.grad(loss)(mx.array(sinks.astype(np.float32))))
    small = 1e-5
    for head in range(TINY.num_heads):
        move = small * np.eye(TINY.num_heads)[head]
        slope = (slow_loss(sinks + move) - slow_loss(sinks - move)) / (2 * small)
        assert exact[head] == pytest.approx(slope, rel=1e-3)


def test_initialise_is_decided_by_the_seed() -> None:
    def drawn(seed: int) -> dict[str, NDArray[np.float32]]:
        mx.random.seed(seed + 1000)  # what else is drawn must not matter
        model = EmotionMIDITransformer(TINY)
        mx.random.uniform(shape=(seed + 1,))
        model.initialise(seed % 2)
        return {name: np.array(value) for name, value in tree_flatten(model.parameters())}

    first, again, other = drawn(0), drawn(2), drawn(1)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
        if value.ndim == 2:
            assert not np.array_equal(value, other[name]), name


def test_initialise_scales_what_writes_to_the_residual() -> None:
    config = MidiTransformerConfig(**{**vars(TINY), "num_layers": 4})
    model = EmotionMIDITransformer(config)
    model.initialise(0)
    narrow = 0.02 / math.sqrt(2 * 4 + 1)
    seen = set()
    for name, value in tree_flatten(model.parameters()):
        array = np.array(value)
        if array.ndim == 2:
            writes = name.endswith(
                ("attention.out.weight", "cross_attention.out.weight", "ffn.down.weight")
            )
            seen.add(writes)
            assert array.std() == pytest.approx(narrow if writes else 0.02, rel=0.1), name
            assert abs(array.mean()) < 0.1 * array.std(), name
        else:
            assert (array == (0 if name.endswith(("bias", "sinks")) else 1)).all(), name
    assert seen == {True, False}


def test_a_new_model_guesses_evenly() -> None:
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    logits = mx.array(forward(model, random_tokens(15, 32), conditions()))
    targets = mx.array(np.minimum(random_tokens(16, 32), VOCABULARY_SIZE - 1))
    surprise = nn.losses.cross_entropy(logits, targets, reduction="mean")
    assert surprise.item() == pytest.approx(math.log(VOCABULARY_SIZE), rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(mx.float16, 0.1), (mx.bfloat16, 0.8)],  # measured 0.026, 0.20 at a spread of 1.7
)
def test_half_precision_is_close(dtype: mx.Dtype, bound: float) -> None:
    tokens, c = random_tokens(16, 80), conditions()
    half = stress(EmotionMIDITransformer(TINY))
    half.set_dtype(dtype)
    cross, cache = half.cross_keys_values(c), KVCache(TINY, dtype=dtype)
    rows = [half.extend(mx.array(tokens[:, :30]), cache, cross)]
    for column in tokens.T[30:]:
        cache.reserve(1)
        logits, cache.keys, cache.values = half.step(
            mx.array(column[:, None]), cache.next_place(), cache.keys, cache.values, cross
        )
        cache.offset += 1
        rows.append(logits[:, None])
    logits = mx.concatenate(rows, axis=1)
    assert logits.dtype == dtype
    assert cache.keys[0].dtype == dtype
    slow = slow_logits(weights_of(half), TINY, tokens[0], c)
    assert difference(np.array(logits.astype(mx.float32))[0], slow) < bound
