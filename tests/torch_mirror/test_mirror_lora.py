"""Adapters in PyTorch compute, learn and melt as those in MLX, and either loads the other's."""

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

from kmidi_mlx.adapter import WHOLE, Parts
from kmidi_mlx.config import MidiTransformerConfig, SpectocloudVitConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora as ours
from kmidi_mlx.models import midi_transformer as ours_midi
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import lora as theirs  # noqa: E402
from kmidi_torch.models import midi_transformer as theirs_midi  # noqa: E402
from kmidi_torch.models import spectocloud_vit as theirs_cloud  # noqa: E402
from kmidi_torch.models.kv_cache import KVCache  # noqa: E402

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=3,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
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
TARGETS = ["qkv:qv", "cross_attention.out", "kv", "gate_up:up", "down"]
kinds = pytest.mark.parametrize("kind", ["lora", "dora"])

Loader = Callable[..., dict[str, NDArray[np.float32]]]
Compare = Callable[[Any, Any], float]
Arrays = dict[str, NDArray[np.float32]]


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def learnt(model: Any, seed: int = 5, much: float = 0.2) -> Arrays:
    """What adapters could have learnt: `lora_b` not zero, lengths changed."""
    rng = np.random.default_rng(seed)
    return {
        name: value * rng.uniform(0.8, 1.25, value.shape).astype(np.float32)
        if name.endswith("magnitude")
        else value + much * rng.normal(size=value.shape).astype(np.float32)
        for name, value in ours.adapter_weights(model).items()
    }


def attached(
    pair: tuple[Any, Any], targets: list[str], kind: Any, much: float = 0.2, **options: Any
) -> None:
    """Put the same adapters on both."""
    for model, room in zip(pair, (ours, theirs), strict=True):
        room.attach(model, targets, 4, 8.0, kind=kind, **options)
    weights = learnt(pair[0], much=much)
    ours.load_adapter(pair[0], weights)
    theirs.load_adapter(pair[1], weights)


def transformers(same_weights: Loader) -> tuple[Any, Any]:
    pair = ours_midi.EmotionMIDITransformer(TINY), theirs_midi.EmotionMIDITransformer(TINY)
    same_weights(*pair)
    return pair


def inputs(count: int = 20) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tokens, conditions and chord index for both."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 388, (2, count)).astype(np.int32)
    given = random(2, 64), np.array([[3], [4]], np.int32), np.array([1, 2], np.int32)
    index = np.zeros((2, count), np.int32)
    mine = ours_midi.Conditions(*(mx.array(part) for part in given))
    other = theirs_midi.Conditions(*(torch.from_numpy(part) for part in given))
    return (mx.array(tokens), mine, mx.array(index)), (
        torch.from_numpy(tokens),
        other,
        torch.from_numpy(index),
    )


@kinds
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [WHOLE, Parts((0, 2), 3)])
def test_a_layer_and_its_gradients(
    same_weights: Loader, apart: Compare, kind: str, bias: bool, parts: Parts
) -> None:
    mine, other = nn.Linear(32, 48, bias=bias), torch.nn.Linear(32, 48, bias=bias)
    same_weights(mine, other)
    pair: list[Any] = [
        room.KINDS[kind].from_base(base, 4, 8.0, 0.25, np.random.default_rng(1), parts)
        for room, base in ((ours, mine), (theirs, other))
    ]
    assert apart(pair[0].lora_a, pair[1].lora_a) == 0.0
    changed = nn.Sequential(pair[0]), torch.nn.Sequential(pair[1])
    # only the last part of the names differs between the two
    weights = learnt(changed[0])
    ours.load_adapter(changed[0], weights)
    theirs.load_adapter(
        changed[1], {name.removeprefix("layers."): value for name, value in weights.items()}
    )
    for one in pair:
        one.draw_dropout(np.random.default_rng(2))
    x, target = random(6, 32), random(6, 48, seed=1)

    def loss(layer: Any) -> mx.array:
        return mx.sum(mx.square(layer(mx.array(x)) - mx.array(target)))

    pair[0].base.freeze()
    _, expected = nn.value_and_grad(pair[0], loss)(pair[0])
    found = pair[1](torch.from_numpy(x))
    assert apart(pair[0](mx.array(x)), found) < 1e-5  # measured 9.5e-7
    (found - torch.from_numpy(target)).square().sum().backward()
    gradients = dict(tree_flatten(expected))
    assert gradients.keys() == dict(pair[1].named_parameters(recurse=False)).keys()
    for name, value in gradients.items():
        size = np.abs(np.array(value)).max()
        assert size > 0
        assert apart(value, getattr(pair[1], name).grad) / size < 1e-5  # measured 3.3e-7
    for one in pair:
        one.eval()
    assert apart(pair[0](mx.array(x)), pair[1](torch.from_numpy(x))) < 1e-5  # measured 9.5e-7
    fused = pair[0].fuse(), pair[1].fuse()
    assert type(fused[1]) is torch.nn.Linear
    assert apart(fused[0](mx.array(x)), fused[1](torch.from_numpy(x))) < 1e-5  # measured 9.5e-7
    again = pair[1](torch.from_numpy(x)) - fused[1](torch.from_numpy(x))
    assert again.abs().max() < 1e-5  # measured 9.5e-7


@kinds
def test_names_shapes_and_first_numbers_are_equal(same_weights: Loader, kind: str) -> None:
    pair = transformers(same_weights)
    trained = [
        room.attach(model, TARGETS, 4, 8.0, 0.1, kind, 7)  # type: ignore[arg-type]
        for model, room in zip(pair, (ours, theirs), strict=True)
    ]
    assert trained[0] == trained[1]
    mine, other = ours.adapter_weights(pair[0]), theirs.adapter_weights(pair[1])
    assert list(mine) == list(other) == trained[0]
    for name, value in mine.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6, err_msg=name)
    everything = {name: tuple(v.shape) for name, v in pair[1].state_dict().items()}
    assert everything == {name: v.shape for name, v in tree_flatten(pair[0].parameters())}
    counted = sum(value.numel() for value in pair[1].parameters() if value.requires_grad)
    assert counted == sum(value.size for value in mine.values())
    assert 0.03 < counted / sum(value.numel() for value in pair[1].parameters()) < 0.1


@kinds
def test_a_network_and_its_gradients(same_weights: Loader, apart: Compare, kind: str) -> None:
    pair = transformers(same_weights)
    before = {name: value.clone() for name, value in pair[1].state_dict().items()}
    attached(pair, TARGETS, kind, dropout=0.1)
    for model, room in zip(pair, (ours, theirs), strict=True):
        room.draw_dropout(model, np.random.default_rng(11))
    mine, other = inputs()
    plain = pair[1].eval()(*other)
    expected, found = pair[0](*mine), pair[1].train()(*other)
    assert np.array(expected).std() > 1
    assert (plain - found).abs().max() > 0.1  # dropout is on
    assert apart(expected, found) < 1e-4  # measured 2.7e-5

    def loss(model: Any) -> mx.array:
        return mx.mean(mx.square(model(*mine)))

    _, gradients = nn.value_and_grad(pair[0], loss)(pair[0])
    found.square().mean().backward()
    learns = {name: value for name, value in pair[1].named_parameters() if value.grad is not None}
    flat = dict(tree_flatten(gradients))
    assert flat.keys() == learns.keys() == ours.adapter_weights(pair[0]).keys()
    for name, value in flat.items():
        size = np.abs(np.array(value)).max()
        assert size > 0, name
        assert apart(value, learns[name].grad) / size < 1e-4  # measured 1.9e-5
    torch.optim.AdamW(learns.values(), lr=0.1).step()
    theirs.detach(pair[1])
    after = pair[1].state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.requires_grad for value in pair[1].parameters())


@kinds
def test_the_generator_steps_with_adapters_and_fused(
    same_weights: Loader, apart: Compare, kind: str
) -> None:
    pair = transformers(same_weights)
    attached((pair[0], pair[1].eval()), TARGETS, kind, dropout=0.5)
    theirs.draw_dropout(pair[1], np.random.default_rng(0))  # nothing is dropped in `eval`
    mine, other = inputs()
    expected = pair[0](*mine)

    def steps(model: Any) -> Any:
        cache, rows = KVCache(TINY, 2), []
        cross = model.cross_keys_values(other[1])
        for column in other[0].T:
            cache.reserve(1)
            logits, cache.keys, cache.values = model.step(
                column[:, None], cache.next_place(), cache.keys, cache.values, cross
            )
            cache.offset += 1
            rows.append(logits)
        return torch.stack(rows, dim=1)

    assert apart(expected, steps(pair[1])) < 1e-4  # measured 1.7e-5
    theirs.fuse_all(pair[1])
    assert not theirs.adapters(pair[1])
    assert apart(expected, steps(pair[1])) < 1e-4  # measured 2.4e-5
    plain = theirs_midi.EmotionMIDITransformer(TINY)
    plain.load_state_dict(pair[1].state_dict(), strict=True)


@kinds
def test_the_cloud_network_with_every_layer_adapted(
    same_weights: Loader, apart: Compare, kind: str
) -> None:
    pair = SpectocloudViT(CLOUD), theirs_cloud.SpectocloudViT(CLOUD)
    same_weights(*pair)
    names = [name for name, one in pair[1].named_modules() if isinstance(one, torch.nn.Linear)]
    attached(pair, names, kind, much=0.005)
    assert theirs.adapters(pair[1]).keys() == set(names)
    given = np.abs(random(2, 128, 64)) % 1.0, random(2, 32), random(2, 64)
    expected = pair[0](*(mx.array(part) for part in given), pair[0].constants(40))
    assert np.array(expected).std(axis=1).mean() > 0.02

    def found() -> Any:
        return pair[1](*(torch.from_numpy(part) for part in given), pair[1].constants(40))

    assert apart(expected, found()) < 1e-4  # measured 5.5e-6
    theirs.fuse_all(pair[1])
    assert apart(expected, found()) < 1e-4  # measured 5.7e-6


def test_an_adapted_network_is_one_graph() -> None:
    model = theirs_midi.EmotionMIDITransformer(replace(TINY, num_layers=1))
    model.initialise(0)
    theirs.attach(model, TARGETS, 4, 8.0, 0.2, "dora")
    torch.compiler.reset()
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for seed in range(2):
        # dropout that is drawn anew needs no new graph
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            theirs.draw_dropout(model, np.random.default_rng(seed))
            torch.testing.assert_close(graph(*inputs()[1]), model(*inputs()[1]))
    torch.compiler.reset()


@kinds
@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.01), ("bfloat16", 0.1)])
def test_half_precision(
    same_weights: Loader, apart: Compare, kind: str, dtype: str, bound: float
) -> None:
    base, x = torch.nn.Linear(32, 48), torch.from_numpy(random(5, 32))
    same_weights(nn.Linear(32, 48), base)
    layer: Any = theirs.KINDS[kind].from_base(base, 4, 8.0, 0.0, np.random.default_rng(1))
    torch.nn.init.normal_(layer.lora_b, std=0.3, generator=torch.Generator().manual_seed(0))
    exact = layer(x).detach().numpy()
    half = getattr(torch, dtype)
    # the adapter fp32 over a coarse layer, then all of it coarse, then under autocast
    layer.base.to(half)
    found = layer(x.to(half))
    assert found.dtype == layer.fuse().weight.dtype == half
    assert apart(exact, found.float()) < bound  # measured 4.2e-3, 2.3e-2
    layer.to(half)
    assert apart(exact, layer(x.to(half)).float()) < bound  # measured 3.5e-3, 2.8e-2
    assert theirs.adapter_weights(torch.nn.Sequential(layer))["0.lora_a"].dtype == np.float32
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(exact, layer(x).float()) < 0.1  # measured 2.7e-2


def test_bad_input_is_one_sentence_in_both(same_weights: Loader) -> None:
    pair = transformers(same_weights)
    for model, room in zip(pair, (ours, theirs), strict=True):
        said = []
        for changed in ({"targets": ["ffn"]}, {"targets": []}, {"rank": 65}, {"kind": "x"}):
            options: Any = {"targets": ["qkv"], "rank": 4, "alpha": 8.0} | changed
            with pytest.raises(KmidiError) as raised:
                room.attach(model, **options)
            said.append(str(raised.value))
        assert "emotion_in, emotion_out, gate_up, kv, out, qkv, query" in said[0]
        room.attach(model, ["qkv"], 4, 8.0)
        with pytest.raises(KmidiError, match="has adapters"):
            room.attach(model, ["qkv"], 4, 8.0)
        with pytest.raises(KmidiError, match=r"missing: .*lora_a.*; unexpected: more"):
            room.load_adapter(model, {"more": random(2, 2)})
    assert all(
        value.requires_grad == ("lora" in name) for name, value in pair[1].named_parameters()
    )
