"""Adapters in use: they add up, leave no trace, cost nothing, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.adapter_file import Adapter
from kmidi_mlx.config import MidiTransformerConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.models.adapters import AdaptedModel, adapt
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.models.quantization import quantize_base

CONFIG = MidiTransformerConfig(
    hidden_dim=64, num_layers=2, num_heads=1, ffn_dim=96, context_length=32,
    cross_attention_layers=(0,),
)  # fmt: skip
TARGETS = ("qkv:qv", "query", "kv:v", "out")


def model() -> EmotionMIDITransformer:
    made = EmotionMIDITransformer(CONFIG)
    made.initialise(0)
    return made.eval()


def logits(network: Any) -> mx.array:
    tokens = mx.array(np.random.default_rng(1).integers(0, 388, (1, 12)))
    conditions = Conditions(
        mx.array(np.random.default_rng(2).normal(size=(1, 64)).astype(np.float32)),
        mx.zeros((1, 1), mx.int32),
        mx.zeros((1,), mx.int32),
    )
    found = network(tokens, conditions, mx.zeros((1, 12), mx.int32))
    mx.eval(found)
    return found


def learnt(kind: str, seed: int, **changes: Any) -> Adapter:
    """An adapter as if it had been trained."""
    rank = changes.pop("rank", 4)
    config = AdapterConfig(method=kind, base="base", rank=rank, alpha=8.0, targets=TARGETS)
    made = model()
    lora.attach(made, config.targets, config.rank, config.alpha, kind=kind)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    arrays = {
        name: (value + 0.2 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in lora.adapter_weights(made).items()
    }
    return Adapter(f"{kind}{seed}", config, arrays | changes, "", {}, Path("adapter.safetensors"))


def attached(adapter: Adapter) -> EmotionMIDITransformer:
    """The model as it was trained: the adapter beside the layers."""
    made, config = model(), adapter.config
    lora.attach(made, config.targets, config.rank, config.alpha, kind=config.method)  # type: ignore[arg-type]
    lora.load_adapter(made, adapter.arrays)
    return made.eval()


def unlike(one: mx.array, two: mx.array) -> float:
    return float(mx.abs(one - two).max())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapted_model_computes_what_was_trained(kind: str) -> None:
    adapter, plain = learnt(kind, 0), model()
    before = logits(plain)
    adapt(plain, [(adapter, 1.0)])
    assert unlike(logits(plain), logits(attached(adapter))) < 1e-5
    assert unlike(logits(plain), before) > 0.05
    # and it is no dearer: the same layers as before
    assert [name for name, _ in tree_flatten(plain.parameters())] == [
        name for name, _ in tree_flatten(model().parameters())
    ]


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.sampled_from(["lora", "dora"]), st.integers(0, 3), st.floats(-1.0, 2.0)),
        max_size=3,
    )
)
def test_adapters_add_up_and_leave_no_trace(chosen: list[tuple[str, int, float]]) -> None:
    adapters = [(learnt(kind, seed), scale) for kind, seed, scale in chosen]
    plain, parts = model(), []
    start = dict(tree_flatten(plain.parameters()))
    for adapter, scale in adapters:
        alone = dict(tree_flatten(lora_fused(adapter).parameters()))
        parts.append({name: scale * (alone[name] - value) for name, value in start.items()})
    adapted = AdaptedModel(plain)
    adapted.use(adapters)
    for name, value in tree_flatten(plain.parameters()):
        expected = start[name] + sum((part[name] for part in parts), mx.zeros_like(value))
        assert unlike(value, expected) < 1e-5, name
    adapted.use([])
    for name, value in tree_flatten(plain.parameters()):
        assert mx.array_equal(value, start[name]), name


def lora_fused(adapter: Adapter) -> EmotionMIDITransformer:
    made = attached(adapter)
    lora.fuse_all(made)
    return made


def test_half_precision_and_a_quantised_base() -> None:
    adapter = learnt("lora", 1)
    exact = logits(attached(adapter))
    half = model()
    half.set_dtype(mx.float16)
    adapt(half, [(adapter, 1.0)])
    assert {value.dtype for _, value in tree_flatten(half.parameters())} == {mx.float16}
    assert unlike(logits(half).astype(mx.float32), exact) < 0.05
    packed = model()
    quantize_base(packed, 8)
    adapted = AdaptedModel(packed)
    before = logits(packed)
    adapted.use([(adapter, 1.0)])
    assert unlike(logits(packed), exact) < 0.1
    adapted.use([])
    assert mx.array_equal(logits(packed), before)


def test_what_does_not_fit_is_said_and_changes_nothing() -> None:
    plain, good = model(), learnt("lora", 0)
    adapted = AdaptedModel(plain)
    adapted.use([(good, 1.0)])
    before = logits(plain)
    bad = {"blocks.0.attention.out.lora_a": np.ones((3, 3), np.float32)}
    with pytest.raises(KmidiError, match=r"adapter\.safetensors does not fit the model"):
        adapted.use([(good, 0.5), (learnt("lora", 1, **bad), 1.0)])
    assert mx.array_equal(logits(plain), before)
    with pytest.raises(KmidiError, match="does not fit the model: rank 65 does not suit"):
        adapted.use([(Adapter("big", AdapterConfig(method="lora", base="b", rank=65), {}, "", {},
                              Path("x")), 1.0)])  # fmt: skip
    assert mx.array_equal(logits(plain), before)
