"""Adapters of either framework change a model of the other alike, alone and several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.adapter_file import Adapter, open_adapters
from kmidi_mlx.config import MidiDataConfig, MidiGeneratorConfig, MidiTransformerConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import adapters as our_adapters
from kmidi_mlx.models import lora as our_lora
from kmidi_mlx.models import midi_transformer as our_midi

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import adapters as their_adapters  # noqa: E402
from kmidi_torch.models import lora as their_lora  # noqa: E402
from kmidi_torch.models import midi_transformer as their_midi  # noqa: E402

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=3,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)
MADE = {
    "calm": AdapterConfig("lora", "base", 4, 8.0, 0.1, ("qkv:qv", "out")),
    "wild": AdapterConfig("dora", "base", 8, 8.0, 0.1, ("qkv:q", "kv:v", "down")),
}

Loader = Callable[..., dict[str, NDArray[np.float32]]]
Pair = tuple[Any, Any]


@pytest.fixture
def pair(same_weights: Loader) -> Pair:
    """The same network in both, with weights as large as trained ones."""
    models = our_midi.EmotionMIDITransformer(TINY), their_midi.EmotionMIDITransformer(TINY)
    weights = same_weights(*models)
    mild = {n: v if n.endswith("norm.weight") else 0.3 * v for n, v in weights.items()}
    models[0].load_weights([(name, mx.array(value)) for name, value in mild.items()])
    models[1].load_state_dict({name: torch.from_numpy(value) for name, value in mild.items()})
    return models[0].eval(), models[1].eval()


def logits(model: Any) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 388, (2, 20)).astype(np.int32)
    emotion = rng.normal(size=(2, 64)).astype(np.float32)
    chords, keys = np.array([[3], [4]], np.int32), np.array([1, 2], np.int32)
    index = np.zeros((2, 20), np.int32)
    if isinstance(model, our_midi.EmotionMIDITransformer):
        told = our_midi.Conditions(mx.array(emotion), mx.array(chords), mx.array(keys))
        return np.array(model(mx.array(tokens), told, mx.array(index)))
    given = their_midi.Conditions(*(torch.from_numpy(part) for part in (emotion, chords, keys)))
    with torch.no_grad():
        made = model(torch.from_numpy(tokens), given, torch.from_numpy(index))
    return np.asarray(made.numpy())


def attached(model: Any, room: Any, config: AdapterConfig) -> Any:
    """Put adapters on that have learnt something."""
    room.attach(model, config.targets, config.rank, config.alpha, kind=config.method)
    rng = np.random.default_rng(7)
    room.load_adapter(
        model,
        {
            name: (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32)
            for name, value in sorted(room.adapter_weights(model).items())
        },
    )
    return model


def save(model: Any, room: Any, name: str, folder: Path) -> None:
    """Write what the adapters of a model hold, as fine-tuning does."""
    data = MidiDataConfig(sequence_length=32)
    config = MidiGeneratorConfig(model=TINY, data=data, adapter=MADE[name])
    checkpoint.save_arrays(
        folder / checkpoint.ADAPTERS / name / checkpoint.ADAPTER,
        room.adapter_weights(model),
        {"model": "midi_generator", "config": config_to_dict(config)},
    )


@pytest.fixture
def folder(pair: Pair, tmp_path: Path) -> Path:
    """A base with one adapter that MLX wrote, `calm`, and one of PyTorch, `wild`."""
    for model, room, name in zip(pair, (our_lora, their_lora), MADE, strict=True):
        save(attached(model, room, MADE[name]), room, name, tmp_path)
        room.detach(model)
    return tmp_path


def opened(folder: Path, *texts: str) -> Sequence[tuple[Adapter, float]]:
    return open_adapters(texts, folder, "midi_generator")


@pytest.mark.parametrize(
    "texts", [["calm"], ["wild"], ["calm:0.7", "wild:-0.5"], ["wild:2", "calm", "calm"]]
)
def test_adapters_of_both_change_both_alike(pair: Pair, folder: Path, texts: list[str]) -> None:
    plain = logits(pair[0])
    for model, room in zip(pair, (our_adapters, their_adapters), strict=True):
        room.adapt(model, opened(folder, *texts))
    ours, theirs = (logits(model) for model in pair)
    assert np.abs(ours - plain).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=1e-5, rtol=0)  # measured 2e-6


@pytest.mark.parametrize("name", MADE)
def test_in_use_it_computes_what_was_trained_and_what_is_fused(
    pair: Pair, folder: Path, name: str
) -> None:
    (adapter, _) = opened(folder, name)[0]
    trained = attached(pair[1], their_lora, MADE[name])
    their_lora.load_adapter(trained, adapter.arrays)
    unfused = logits(trained)
    their_lora.detach(trained)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    their_adapters.adapt(trained, [(adapter, 1.0)])
    np.testing.assert_allclose(logits(trained), unfused, atol=1e-5, rtol=0)
    assert trained.state_dict().keys() == before.keys()
    ours = attached(pair[0], our_lora, MADE[name])
    our_lora.load_adapter(ours, adapter.arrays)
    our_lora.fuse_all(ours)
    np.testing.assert_allclose(logits(ours), unfused, atol=1e-5, rtol=0)


def test_they_can_be_changed_and_taken_off(pair: Pair, folder: Path) -> None:
    model = pair[1]
    adapted, plain = their_adapters.AdaptedModel(model), logits(model)
    adapted.use(opened(folder, "calm"))
    calm = logits(model)
    adapted.use(opened(folder, "wild:0.5"))
    assert np.abs(logits(model) - calm).max() > 0.05
    adapted.use(opened(folder, "calm"))
    np.testing.assert_array_equal(logits(model), calm)
    (adapter, _) = opened(folder, "calm")[0]
    wrong = replace(adapter, config=replace(adapter.config, rank=3))
    adapted.check(adapter)
    for use in (lambda: adapted.use([(adapter, 1.0), (wrong, 1.0)]), lambda: adapted.check(wrong)):
        with pytest.raises(KmidiError, match=r"safetensors does not fit the model: .*lora_a"):
            use()
    np.testing.assert_array_equal(logits(model), calm)
    adapted.use([])
    np.testing.assert_array_equal(logits(model), plain)
    assert all(type(one) is not their_lora.LoRALinear for one in model.modules())


def test_half_precision_stays_what_it_is(pair: Pair, folder: Path) -> None:
    model, exact = pair[1], pair[0]
    our_adapters.adapt(exact, opened(folder, "calm"))
    their_adapters.adapt(model.half(), opened(folder, "calm"))
    assert {value.dtype for value in model.parameters()} == {torch.float16}
    assert asdict(MADE["calm"]) == asdict(opened(folder, "calm")[0][0].config)
    difference = np.abs(logits(model.float()) - logits(exact)).max()
    assert difference < 0.01
