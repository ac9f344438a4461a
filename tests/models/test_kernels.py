from __future__ import annotations

from collections import Counter
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from bench import kernels
from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer


@pytest.fixture(scope="module")
def real_model() -> EmotionMIDITransformer:
    """The default sizes: kernels do not depend on the weights, but they do on the layers."""
    model = EmotionMIDITransformer(MidiTransformerConfig())
    mx.eval(model.parameters())
    return model


def step_kernels(model: EmotionMIDITransformer, rows: int, *, compiled: bool) -> Counter[str]:
    cache = KVCache(model.config, rows)
    cross = model.cross_keys_values(
        Conditions(mx.zeros((rows, 64)), mx.zeros((rows, 1), mx.int32), mx.zeros(rows, mx.int32))
    )
    tokens, place = mx.zeros((rows, 1), mx.int32), cache.next_place()
    mx.eval(cross, cache.keys, cache.values, tokens, place)
    step = mx.compile(model.step) if compiled else model.step

    def build() -> list[mx.array]:
        logits, keys, values = step(tokens, place, cache.keys, cache.values, cross)
        return [logits, *keys, *values]

    return kernels.count(build)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_decode_step_launches_few_kernels(real_model: EmotionMIDITransformer, rows: int) -> None:
    counted = step_kernels(real_model, rows, compiled=True)
    assert counted.total() <= 112  # now 107
    # 8 blocks: attention, its norm and its rotary embedding, the norm before the feed-forward
    # layer; 4 of them with cross-attention and its norm; the last norm
    assert counted[kernels.STAND_IN] == 8 * 4 + 4 * 2 + 1
    # qkv and gate-up per block, the query of each cross-attention, the logits
    assert counted["Matmul"] == 8 * 2 + 4 + 1
    # each product that ends in the residual stream adds to it
    assert counted["AddMM"] == 8 * 2 + 4
    assert counted["DynamicSliceUpdate"] == 8 * 2
    assert "Concatenate" not in counted
    assert "Copy" not in counted


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_drawing_the_event_adds_few_kernels(
    real_model: EmotionMIDITransformer, guidance_scale: float
) -> None:
    seen: list[Counter[str]] = []

    def count_instead(*outputs: object) -> None:
        flat: list[mx.array] = []
        for output in outputs:
            flat += output if isinstance(output, list) else [output]  # type: ignore[list-item]
        seen.append(kernels.launching_primitives(flat))

    stream = EventGenerator(real_model, SamplingConfig(guidance_scale=guidance_scale))
    mx.eval(stream._cache.keys, stream._cache.values, stream._state, stream._last, stream._knobs)
    mx.eval(stream._cross)
    with kernels.fast_operations_as_one(), mock.patch.object(mx, "async_eval", count_instead):
        stream._queue_step()
    (counted,) = seen
    assert counted.total() <= 124  # now 120, with guidance 121
    assert counted["Sort"] == 1


def test_compiling_fuses(real_model: EmotionMIDITransformer) -> None:
    fused = step_kernels(real_model, 1, compiled=True).total()
    assert step_kernels(real_model, 1, compiled=False).total() >= fused


def test_the_counter_counts_known_graphs() -> None:
    x, w = mx.ones((4, 8)), mx.ones((8, 8))
    gain = mx.ones((8,))
    mx.eval(x, w, gain)
    assert kernels.count(lambda: [x]).total() == 0  # nothing to compute
    assert kernels.count(lambda: [x @ w]) == {"Matmul": 1}
    assert kernels.count(lambda: [(x @ w) @ w, mx.exp(x)]) == {"Matmul": 2, "Exp": 1}
    views = x[1:, None].transpose(1, 0, 2) @ mx.expand_dims(w.T[:, 2:], 0)
    assert kernels.count(lambda: [views]) == {"Matmul": 1}
    assert kernels.count(lambda: [mx.fast.rms_norm(x, gain, 1e-5)]) == {kernels.STAND_IN: 1}
    assert kernels.count(lambda: [mx.fast.layer_norm(x, gain, gain, 1e-5)]) == {kernels.STAND_IN: 1}
    q = x.reshape(1, 1, 4, 8)

    def attention() -> list[mx.array]:
        turned = mx.fast.rope(q, 8, traditional=False, base=1e4, scale=1.0, offset=3)
        return [mx.fast.scaled_dot_product_attention(turned, q, q, scale=1.0, mask="causal")]

    assert kernels.count(attention) == {kernels.STAND_IN: 2}


def test_the_counter_sees_fusion() -> None:
    x = mx.ones((4, 8))
    mx.eval(x)

    def chain(y: mx.array) -> mx.array:
        return mx.exp(y * 2.0 + 1.0) - y

    assert kernels.count(lambda: [chain(x)]).total() == 4
    assert kernels.count(lambda: [mx.compile(chain)(x)]).total() == 1


def test_counting_leaves_the_fast_operations_as_they_were() -> None:
    before = (mx.fast.rms_norm, mx.fast.rope, mx.fast.scaled_dot_product_attention)
    with kernels.fast_operations_as_one():
        assert mx.fast.rms_norm is not before[0]
    assert (mx.fast.rms_norm, mx.fast.rope, mx.fast.scaled_dot_product_attention) == before
    out = mx.fast.rms_norm(mx.full((1, 8), 3.0), mx.ones((8,)), 1e-5)
    np.testing.assert_allclose(np.array(out), 1.0, atol=1e-5)


def test_a_kernel_with_two_readers_is_counted_once() -> None:
    x = mx.ones((4, 8))
    mx.eval(x)

    def build() -> list[mx.array]:
        shared = mx.exp(x)
        return [shared + 1.0, mx.square(shared)]

    assert kernels.count(build) == {"Exp": 1, "Add": 1, "Square": 1}
