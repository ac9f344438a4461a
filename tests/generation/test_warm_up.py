"""Steps that several generators share, warmed up, and generators that look back less far."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mlx.utils import tree_flatten

from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation.generator import EventGenerator, compiled_step, warm_up
from kmidi_mlx.models import kv_cache
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)
SAD = Emotion.of(-0.7, -0.4)


@pytest.fixture
def model() -> EmotionMIDITransformer:
    """Weights at ten times their size: a model with strong opinions about its past."""
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    grown = [
        (name, 10.0 * value if value.ndim == 2 else value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(grown)
    return model


def read(stream: EventGenerator, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


@pytest.mark.parametrize("guidance", [False, True])
def test_warming_up_compiles_every_shape_and_changes_nothing(
    guidance: bool, model: EmotionMIDITransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards no size of the ring is new, and music is as if it had never happened."""
    monkeypatch.setattr("kmidi_mlx.generation.generator.CAPACITY_STEP", 8)
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 8)
    sampling = SamplingConfig(temperature=1.0, guidance_scale=2.0 if guidance else 1.0)
    fresh = read(EventGenerator(model, sampling, 4, SAD), 80)
    shapes: list[tuple[int, ...]] = []

    def counted(last, place, keys, *others):  # type: ignore[no-untyped-def]
        shapes.append(tuple(keys[0].shape))
        return step(last, place, keys, *others)

    step = compiled_step(model)
    costs = warm_up(model, counted, guidance)
    assert list(costs.write) == [8, 16, 24, 32]
    assert all(0.0 < seconds < 1.0 for seconds in costs.write.values())
    assert 0.0 < costs.read < 1.0
    warm = set(shapes)
    assert {shape[2] for shape in warm} == {8, 16, 24, 32}
    assert {shape[0] for shape in warm} == {2 if guidance else 1}
    shapes.clear()
    assert read(EventGenerator(model, sampling, 4, SAD, step=counted), 80) == fresh
    assert set(shapes) <= warm


def test_looking_back_less_far_is_as_a_model_that_never_could(
    model: EmotionMIDITransformer,
) -> None:
    short = EmotionMIDITransformer(replace(TINY, context_length=16))
    short.load_weights(tree_flatten(model.parameters()))
    lively = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
    wanted = read(EventGenerator(short, lively, 3, SAD), 200)
    assert read(EventGenerator(model, lively, 3, SAD, context=16), 200) == wanted
    assert read(EventGenerator(model, lively, 3, SAD), 200) != wanted
    # more than the model can is as much as it can
    assert read(EventGenerator(model, lively, 3, SAD, context=99), 200) == read(
        EventGenerator(model, lively, 3, SAD), 200
    )
