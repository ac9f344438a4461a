"""Adapters change what they should, start as nothing, learn, and melt into the layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx.adapter import WHOLE, Parts
from kmidi_mlx.config import MidiTransformerConfig, SpectocloudVitConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.lora import DoRALinear, LoRALinear
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

SMALL = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=3,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0, 2),
)
CLOUD = SpectocloudVitConfig(
    dims=(16, 32),
    depths=(2, 1),
    patch_size=8,
    window_size=4,
    head_dim=16,
    condition_dim=16,
    decoder_dim=32,
)
KINDS = pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
Q_AND_V = Parts((0, 2), 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(rng(seed).normal(size=shape).astype(np.float32))


def linear(inputs: int = 32, outputs: int = 48, bias: bool = True, seed: int = 1) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = random(outputs, inputs, seed=seed) / inputs**0.5
    if bias:
        layer.bias = random(outputs, seed=seed + 1)
    return layer


def learnt(layer: LoRALinear, seed: int = 5, much: float = 0.5) -> LoRALinear:
    """As if it had been trained."""
    layer.lora_b = much * random(*layer.lora_b.shape, seed=seed)
    if isinstance(layer, DoRALinear):
        factors = mx.array(rng(seed).uniform(0.5, 2.0, layer.magnitude.shape).astype(np.float32))
        layer.magnitude = layer.magnitude * factors
    return layer


def adapted(kind: type[LoRALinear], base: nn.Module, parts: Parts = WHOLE) -> LoRALinear:
    return kind.from_base(base, 4, 8.0, 0.0, rng(2), parts)


def transformer() -> EmotionMIDITransformer:
    model = EmotionMIDITransformer(SMALL)
    model.initialise(0)
    return model


def conditions(batch: int = 2) -> Conditions:
    return Conditions(random(batch, 64), mx.array([[3]] * batch), mx.array([5] * batch))


def logits(model: EmotionMIDITransformer) -> NDArray[np.float32]:
    tokens = mx.array(rng(3).integers(0, 388, (2, 20)))
    return np.array(model(tokens, conditions(), mx.zeros((2, 20), mx.int32)))


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: np.array(value).tobytes() for name, value in tree_flatten(model.parameters())}


def unlike(one: Any, two: Any) -> float:
    return float(np.abs(np.array(one) - np.array(two)).max())


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [WHOLE, Q_AND_V, Parts((1,), 3), Parts((0, 1, 2), 3)])
def test_a_layer_is_what_the_papers_say(kind: Any, bias: bool, parts: Parts) -> None:
    base, x = linear(bias=bias), random(3, 7, 32)
    layer = adapted(kind, base, parts)
    assert unlike(layer(x), base(x)) < 1e-5  # nothing is learnt yet
    learnt(layer)
    # by hand, in float64, part by part
    weight = np.array(base.weight, np.float64)
    ups = np.split(np.array(layer.lora_a, np.float64), len(parts.chosen), axis=1)
    downs = np.split(np.array(layer.lora_b, np.float64), len(parts.chosen))
    rows = [block.copy() for block in np.split(weight, parts.total)]
    for place, (part, up, down) in enumerate(zip(parts.chosen, ups, downs, strict=True)):
        assert up.shape[1] == 4
        rows[part] += (8.0 / 4) * (up @ down).T
        if kind is DoRALinear:
            lengths = np.linalg.norm(rows[part], axis=1, keepdims=True)
            magnitudes = np.split(np.array(layer.magnitude), len(parts.chosen))[place]
            rows[part] *= magnitudes[:, None] / lengths
    expected = np.array(x) @ np.concatenate(rows).T + (np.array(base.bias) if bias else 0.0)
    assert unlike(layer(x), expected) < 2e-5  # measured 1.1e-6
    untouched = [part for part in range(parts.total) if part not in parts.chosen]
    for part in untouched:
        there = slice(part * 16, (part + 1) * 16)
        assert unlike(layer(x)[..., there], base(x)[..., there]) < 1e-6


@KINDS
@pytest.mark.parametrize("parts", [WHOLE, Q_AND_V])
def test_a_fused_layer_computes_the_same(kind: Any, parts: Parts) -> None:
    x = random(5, 32)
    for base in (linear(), linear(bias=False)):
        layer = learnt(adapted(kind, base, parts))
        fused = layer.fuse()
        assert type(fused) is nn.Linear
        assert ("bias" in fused) == ("bias" in base)
        assert unlike(fused(x), layer(x)) < 1e-5  # measured 9.5e-7
        assert unlike(layer.weight, fused.weight) == 0.0


@KINDS
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("parts", [WHOLE, Q_AND_V])
def test_over_a_quantised_layer(kind: Any, bits: int, parts: Parts) -> None:
    plain = linear(64, 96)
    base = nn.QuantizedLinear.from_linear(plain, group_size=32, bits=bits)
    coarse = linear(64, 96)
    coarse.weight = mx.dequantize(base.weight, base.scales, base.biases, group_size=32, bits=bits)
    x = random(5, 64)
    layer, same = (learnt(adapted(kind, one, parts)) for one in (base, coarse))
    assert unlike(layer(x), same(x)) < 1e-5  # measured 1.4e-6
    assert unlike(layer.fuse()(x), layer(x)) < 1e-5  # measured 1.4e-6
    assert unlike(layer(x), base(x)) > 0.1


@KINDS
def test_gradients_reach_the_adapter_and_lengths_are_constant_in_them(kind: Any) -> None:
    layer = learnt(adapted(kind, linear(), Q_AND_V))
    x, target = random(6, 32), random(6, 48, seed=9)
    layer.base.freeze()

    def loss(layer: LoRALinear) -> mx.array:
        return mx.sum(mx.square(layer(x) - target))

    _, found = nn.value_and_grad(layer, loss)(layer)
    found = dict(tree_flatten(found))
    names = {"lora_a", "lora_b"} | ({"magnitude"} if kind is DoRALinear else set())
    assert found.keys() == names
    gain = layer._gain() if kind is DoRALinear else mx.ones((48,))
    gain = mx.array(np.array(gain))

    def plain(layer: LoRALinear) -> mx.array:
        # the same with the gain a number: what section 4.3 asks for
        y = (layer.base(x) - layer.base.bias + layer._delta(x)) * gain + layer.base.bias
        return mx.sum(mx.square(y - target))

    _, expected = nn.value_and_grad(layer, plain)(layer)
    for name, value in tree_flatten(expected):
        if name != "magnitude":
            assert unlike(found[name], value) < 1e-4 * float(mx.abs(value).max()), name
    assert all(float(mx.abs(value).max()) > 0 for value in found.values())


def test_dropout_drops_inputs_of_the_adapter_alone_and_only_in_training() -> None:
    base = linear()
    layer = learnt(LoRALinear.from_base(base, 4, 8.0, 0.25, rng(2)))
    x = random(400, 32)
    whole = layer(x)  # nothing is drawn yet
    layer.draw_dropout(rng(4))
    kept = np.array(layer._keep)
    assert set(np.unique(kept)) == {0.0, np.float32(4 / 3)}
    expected = base(x) + 2.0 * (x * mx.array(kept)) @ layer.lora_a @ layer.lora_b
    assert unlike(layer(x), expected) < 1e-5
    assert unlike(layer(x), whole) > 0.1
    layer.eval()
    assert unlike(layer(x), whole) == 0.0
    assert unlike(layer.fuse()(x), whole) < 1e-5
    layer.train()
    total = mx.zeros_like(whole)
    for seed in range(300):
        layer.draw_dropout(rng(seed))
        total = total + layer(x)
    assert float(mx.abs(total / 300 - whole).mean()) < 0.1 * float(mx.abs(whole - base(x)).mean())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(
    ("targets", "count", "layers"),
    [
        (["qkv"], 3 * 4 * (64 + 192), 3),
        (["qkv:qv"], 3 * 2 * 4 * (64 + 64), 3),
        (["query", "kv:v"], 2 * (4 * (64 + 64) + 4 * (64 + 64)), 4),
        (["cross_attention.out", "gate_up:up"], 2 * 4 * 128 + 3 * 4 * (64 + 96), 5),
        (["blocks.1.ffn.down"], 4 * (96 + 64), 1),
        (["gate_up:gate_up"], 3 * 2 * 4 * (64 + 96), 3),
    ],
)
def test_attaching_freezes_all_else(kind: Any, targets: list[str], count: int, layers: int) -> None:
    model = transformer()
    before, plain = logits(model), weights(model)
    names = lora.attach(model, targets, 4, 8.0, kind=kind)
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert names == sorted(trained)
    assert len(lora.adapters(model)) == layers
    found = sum(value.size for name, value in trained.items() if not name.endswith("magnitude"))
    assert found == count
    assert unlike(logits(model), before) < 1e-5  # measured 0
    lora.detach(model)
    assert weights(model) == plain
    assert len(tree_flatten(model.trainable_parameters())) == len(plain)
    assert unlike(logits(model), before) == 0.0


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_training_moves_the_adapter_and_never_the_base(kind: Any) -> None:
    model = transformer()
    plain = weights(model)
    names = lora.attach(model, ["qkv:qv", "down"], 4, 8.0, 0.1, kind)
    tokens = mx.array(rng(3).integers(0, 388, (2, 20)))
    index = mx.zeros((2, 20), mx.int32)
    optimizer = optimizers.AdamW(1e-2)
    optimizer.init(model.trainable_parameters())

    def loss(model: EmotionMIDITransformer) -> mx.array:
        found = model(tokens[:, :-1], conditions(), index[:, :-1])
        return nn.losses.cross_entropy(found, tokens[:, 1:], reduction="mean")

    graph = nn.value_and_grad(model, loss)
    step = mx.compile(lambda: graph(model), inputs=[model.state], outputs=[model.state])
    losses, masks = [], rng(7)
    for _ in range(12):
        lora.draw_dropout(model, masks)
        value, gradients = step()
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(np.abs(value).max() > 0 for value in lora.adapter_weights(model).values())
    assert set(names) == lora.adapter_weights(model).keys()
    model.eval()
    after, arrays = logits(model), lora.adapter_weights(model)
    lora.detach(model)
    assert weights(model) == plain
    # put on anew, with other first numbers, the arrays say everything
    lora.attach(model, ["qkv:qv", "down"], 4, 8.0, kind=kind, seed=1)
    assert unlike(logits(model), after) > 0.1
    lora.load_adapter(model, arrays)
    assert unlike(logits(model), after) == 0.0
    lora.fuse_all(model)
    assert unlike(logits(model), after) < 1e-5  # measured 9.2e-7
    assert weights(model).keys() == plain.keys()


def test_nothing_is_dropped_where_the_model_only_listens() -> None:
    model = transformer().eval()
    lora.attach(model, ["qkv"], 4, 8.0, 0.5)
    for layer in lora.adapters(model).values():
        learnt(layer)
    before = logits(model)
    lora.draw_dropout(model, rng(1))
    assert unlike(logits(model), before) == 0.0
    assert unlike(logits(model.train()), before) > 0.1


def test_dropout_is_seen_by_a_compiled_step() -> None:
    layer = learnt(LoRALinear.from_base(linear(), 4, 8.0, 0.5, rng(2)))
    x = random(3, 32)
    step = mx.compile(layer.__call__, inputs=[layer.state])
    for seed in range(2):
        layer.draw_dropout(rng(seed))
        assert unlike(step(x), layer(x)) < 1e-5


def test_the_generator_steps_and_the_cloud_network_draws() -> None:
    model = transformer()
    lora.attach(model, ["qkv:qv", "out", "query", "kv", "gate_up", "down"], 4, 8.0, kind="dora")
    for layer in lora.adapters(model).values():
        learnt(layer)
    tokens = rng(3).integers(0, 388, (1, 12))
    cache, rows = KVCache(SMALL, 1), []
    given = conditions(1)
    cross = model.cross_keys_values(given)
    for token in tokens[0].tolist():
        cache.reserve(1)
        row, cache.keys, cache.values = model.step(
            mx.array([[token]]), cache.next_place(), cache.keys, cache.values, cross
        )
        cache.offset += 1
        rows.append(row)
    whole = model(mx.array(tokens), given, mx.zeros((1, 12), mx.int32))
    assert unlike(mx.stack(rows, axis=1), whole) < 1e-4  # measured 4.8e-7

    cloud = SpectocloudViT(CLOUD)
    cloud.initialise(0)
    inputs = mx.abs(random(2, 128, 64)) % 1.0, random(2, 32), random(2, 64)
    plain = cloud(*inputs, cloud.constants(40))
    # whatever is called by its weight alone in the network has its adapter too
    names = [name for name, one in cloud.named_modules() if isinstance(one, nn.Linear)]
    lora.attach(cloud, names, 2, 2.0)
    for layer in lora.adapters(cloud).values():
        learnt(layer, much=0.1)
    found = cloud(*inputs, cloud.constants(40))
    assert unlike(found, plain) > 0.05
    lora.fuse_all(cloud)
    assert unlike(cloud(*inputs, cloud.constants(40)), found) < 1e-4  # measured 4.8e-7


def test_a_quantised_generator_learns() -> None:
    model = transformer()
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda _, m: type(m) is nn.Linear)
    before = logits(model)
    names = lora.attach(model, ["qkv:qv"], 4, 8.0)
    assert names == [f"blocks.{k}.attention.qkv.lora_{x}" for k in range(3) for x in "ab"]
    assert unlike(logits(model), before) == 0.0
    for layer in lora.adapters(model).values():
        learnt(layer)
    after = logits(model)
    lora.fuse_all(model)
    assert unlike(logits(model), after) < 1e-4  # measured 2.7e-7
    assert type(model.blocks[0].attention.qkv) is nn.Linear
    assert type(model.blocks[0].attention.out) is nn.QuantizedLinear
    # what is trained again holds no whole numbers
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert "blocks.0.attention.qkv.weight" in trained
    assert "blocks.0.attention.out.weight" not in trained


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@KINDS
def test_half_precision(kind: Any, dtype: mx.Dtype) -> None:
    layer, x = learnt(adapted(kind, linear(), Q_AND_V)), random(5, 32)
    exact = layer(x)
    layer.base.set_dtype(dtype)  # the adapter stays fp32, as in training
    bound = {mx.float16: 0.02, mx.bfloat16: 0.15}[dtype]
    found = layer(x.astype(dtype))
    assert found.dtype == layer.fuse().weight.dtype == dtype
    assert unlike(found.astype(mx.float32), exact) < bound  # measured 2.8e-3, 2.7e-2
    arrays = lora.adapter_weights(nn.Sequential(layer))
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
    layer.set_dtype(dtype)
    found = layer(x.astype(dtype))
    assert found.dtype == dtype
    assert unlike(found.astype(mx.float32), exact) < bound  # measured 4.1e-3, 3.7e-2
    arrays = lora.adapter_weights(nn.Sequential(layer))
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}


def test_rows_of_zeros_stay_finite_under_dora() -> None:
    base = linear()
    base.weight = mx.concatenate([mx.zeros((8, 32)), base.weight[8:]])
    layer, x = adapted(DoRALinear, base), random(3, 32)
    assert unlike(layer(x), base(x)) < 1e-5
    assert np.isfinite(np.array(learnt(layer)(x))).all()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"targets": ["qvk"]}, "'qvk'; there are down, emotion_in, emotion_out, gate_up, kv, out"),
        ({"targets": []}, "no layer to adapt is given; there are down"),
        ({"targets": ["qkv", "qkv:q"]}, r"two targets name the layer blocks\.0\.attention\.qkv"),
        ({"targets": ["qkv:vq"]}, "'vq' are no parts of qkv; its parts are q, k, v, in this order"),
        ({"targets": ["qkv:"]}, "'' are no parts of qkv"),
        ({"targets": ["out:q"]}, "'out' has no parts to choose; only qkv, kv, gate_up have"),
        ({"rank": 65}, "rank 65 does not suit a layer of 64 inputs and 192 outputs; give 1 to 64"),
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"dropout": 1.0}, "dropout 1.0 is not in"),
        ({"kind": "vera"}, "no adapter is called 'vera'; there are lora, dora"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(changed: Any, sentence: str) -> None:
    model = transformer()
    plain = weights(model)
    with pytest.raises(KmidiError, match=sentence):
        lora.attach(model, **({"targets": ["qkv"], "rank": 4, "alpha": 8.0} | changed))
    assert weights(model) == plain
    assert len(tree_flatten(model.trainable_parameters())) == len(plain)


def test_adapters_are_put_on_once_and_fit_or_say_why() -> None:
    model = transformer()
    lora.attach(model, ["qkv"], 4, 8.0)
    with pytest.raises(KmidiError, match="has adapters; fuse or detach them first"):
        lora.attach(model, ["out"], 4, 8.0)
    arrays = lora.adapter_weights(model)
    first = "blocks.0.attention.qkv.lora_a"
    wrong = {**arrays, "more": arrays[first], first: arrays[first][:, :3]}
    del wrong["blocks.1.attention.qkv.lora_b"]
    with pytest.raises(KmidiError) as raised:
        lora.load_adapter(model, wrong)
    assert "missing: blocks.1.attention.qkv.lora_b" in str(raised.value)
    assert "unexpected: more" in str(raised.value)
    assert "lora_a is (64, 3), not (64, 4)" in str(raised.value)
    assert lora.adapter_weights(model).keys() == arrays.keys()


def test_the_seed_draws_the_first_numbers() -> None:
    def drawn(seed: int, dim: int = 64) -> dict[str, NDArray[np.float32]]:
        model = EmotionMIDITransformer(replace(SMALL, hidden_dim=dim))
        lora.attach(model, ["qkv:qv", "down"], 4, 8.0, seed=seed)
        return lora.adapter_weights(model)

    one, again, other = drawn(1), drawn(1), drawn(2)
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        if name.endswith("lora_a"):
            assert not np.array_equal(value, other[name])
            assert value.std() == pytest.approx(len(value) ** -0.5, rel=0.2)
        else:
            assert not value.any()
