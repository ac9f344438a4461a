"""Quantised networks compute what their dequantised weights compute, and are found as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from stressed_weights import stressed

from kmidi_mlx.checkpoint import load_arrays, save_arrays
from kmidi_mlx.checkpoint_model import Weights
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    EmotionRecognizerModelConfig,
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    RunConfig,
    SamplingConfig,
    SpectocloudConfig,
    SpectocloudVitConfig,
)
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.convert import find_network
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models import lora
from kmidi_mlx.models.loading import assemble, load_generator, load_recognizer, load_spectocloud
from kmidi_mlx.models.midi_transformer import Conditions
from kmidi_mlx.models.quantization import quantize, quantize_base, quantized_layers, restructure
from kmidi_mlx.quantization import DESCRIPTION, Choice, Packing, describe

GENERATOR = MidiGeneratorConfig(
    model=MidiTransformerConfig(
        hidden_dim=96,  # not divisible by 64
        num_layers=2,
        num_heads=3,
        ffn_dim=128,
        context_length=64,
        cross_attention_layers=(0,),
    ),
    data=MidiDataConfig(sequence_length=32),
)
CLOUDS = SpectocloudConfig(
    model=SpectocloudVitConfig(
        dims=(32, 64),
        depths=(2, 1),
        patch_size=8,
        window_size=4,
        head_dim=16,
        condition_dim=64,
        decoder_dim=64,
        decoder_layers=1,
    )
)
RECOGNIZER = EmotionRecognizerConfig(
    model=EmotionRecognizerModelConfig(
        n_mels=16, dim=32, num_layers=2, kernel_size=3, labels=("happy", "sad"), num_cues=4
    )
)
RUNS = (GENERATOR, CLOUDS, RECOGNIZER)
LOADERS: dict[str, Callable[..., Any]] = {
    "midi_generator": load_generator,
    "spectocloud": load_spectocloud,
    "emotion_recognizer": load_recognizer,
}


def build(config: RunConfig) -> Any:
    return find_network("kmidi_mlx", config)(config.model)


def arrays_of(model: nn.Module) -> dict[str, Any]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def plain_weights(config: RunConfig, **metadata: Any) -> Weights[Any]:
    """Weights under which every part counts."""
    rng = np.random.default_rng(0)
    arrays = {name: stressed(name, a.shape, rng) for name, a in arrays_of(build(config)).items()}
    metadata = {"model": config.name, "config": config_to_dict(config), **metadata}
    return Weights(arrays, config, metadata, Path("here"))


def quantised_weights(config: RunConfig, choice: Choice, dtype: Any = mx.float32) -> Weights[Any]:
    weights = plain_weights(config, metric=1.5)
    model = assemble(weights, build, dtype).model
    metadata = {**weights.metadata, DESCRIPTION: describe(quantize(model, choice))}
    return Weights(arrays_of(model), config, metadata, Path("there"))


def outputs(model: nn.Module, config: RunConfig) -> mx.array:
    """What a network makes of a few inputs."""
    rng = np.random.default_rng(1)

    def floats(*shape: int) -> mx.array:
        return mx.array(rng.uniform(size=shape).astype(np.float32))

    if isinstance(config, MidiGeneratorConfig):
        tokens = mx.array(rng.integers(0, 388, (2, 24)).astype(np.int32))
        conditions = Conditions(floats(2, 64), mx.array([[3], [5]]), mx.array([1, 2]))
        return model(tokens, conditions, mx.zeros((2, 24), mx.int32))
    if isinstance(config, SpectocloudConfig):
        return model(floats(2, 128, 64), floats(2, 32), floats(2, 64), model.constants(50))
    estimate = model(floats(2, 40, model.bands))
    return mx.concatenate([estimate.numbers, estimate.logits, estimate.cues], axis=-1)


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("config", RUNS, ids=lambda config: config.name)
def test_quantised_layers_compute_what_their_weights_say(
    config: RunConfig, bits: int, group_size: int
) -> None:
    weights = quantised_weights(config, Choice(bits, group_size))
    shapes = {name: a.shape for name, a in plain_weights(config).arrays.items()}
    dequantised = Weights(weights.plain(shapes), config, {}, weights.path)
    model = assemble(weights, build, mx.float32).model
    found = np.array(outputs(model, config))
    same = np.array(outputs(assemble(dequantised, build, mx.float32).model, config))
    np.testing.assert_allclose(found, same, atol=1e-4 * max(1.0, float(same.std())))  # now 1e-5
    plain = outputs(assemble(plain_weights(config), build, mx.float32).model, config)
    assert np.abs(found - np.array(plain)).max() > 1e-4  # quantising does change something
    assert quantized_layers(model)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("config", RUNS, ids=lambda config: config.name)
def test_what_was_saved_is_loaded(config: RunConfig, dtype: Any, tmp_path: Path) -> None:
    weights = quantised_weights(
        config, Choice(4, layer_bits={"up": 8} if config != GENERATOR else {})
    )
    save_arrays(tmp_path / "best.safetensors", weights.arrays, weights.metadata)
    loaded = LOADERS[config.name](tmp_path, dtype, True)
    assert describe(quantized_layers(loaded.model)) == weights.metadata[DESCRIPTION]
    assert loaded.metadata["metric"] == 1.5
    assert not loaded.model.training
    for name, array in arrays_of(loaded.model).items():
        stored = weights.arrays[name]
        if stored.dtype == np.uint32:
            assert array.dtype == np.uint32
            assert np.array_equal(array, stored)
        else:
            assert np.array_equal(array, stored.astype(array.dtype))
            assert array.dtype == np.array(mx.zeros(1, dtype)).dtype
    assert np.isfinite(np.array(outputs(loaded.model, config).astype(mx.float32))).all()


def test_a_stream_of_events_runs_on_quantised_layers() -> None:
    weights = quantised_weights(GENERATOR, Choice(4))
    shapes = {name: a.shape for name, a in plain_weights(GENERATOR).arrays.items()}
    dequantised = Weights(weights.plain(shapes), GENERATOR, {}, weights.path)
    written = []
    for each in (weights, dequantised):
        model = assemble(each, build, mx.float32).model
        stream = EventGenerator(model, SamplingConfig(guidance_scale=1.5), 3, prompt=[356, 60, 270])
        # past the end of the ring, which holds 64
        written.append([stream.next_event() for _ in range(100)])
    assert written[0] == written[1]


def test_embeddings_and_exceptions_stay_plain() -> None:
    model = assemble(plain_weights(GENERATOR), build, mx.float32).model
    packed = quantize(model, Choice(4))
    linear = {name for name, layer in model.named_modules() if type(layer) is nn.Linear}
    assert not linear
    assert type(model.embedding) is nn.Embedding
    assert packed["emotion_in"] == Packing(4, 64)
    assert packed["emotion_out"] == Packing(4, 32)  # 96 inputs

    clouds = assemble(plain_weights(CLOUDS), build, mx.float32).model
    packed = quantize(clouds, Choice(4))
    assert {name.split(".")[0] for name in packed} == {
        "patch_embedding", "condition_out", "stages", "merges", "modulation",
    }  # fmt: skip
    assert not any(name.startswith("stages.0") for name in packed)


def test_names_choose_layers() -> None:
    model = assemble(plain_weights(CLOUDS), build, mx.float32).model
    choice = Choice(4, keep=("merges",), layer_bits={"head": 8, "stages.1": 6, "qkv": 8})
    packed = quantize(model, choice)
    assert packed["head"].bits == 8
    assert packed["stages.1.0.attention.qkv"].bits == 8
    assert packed["stages.0.0.attention.qkv"].bits == 8  # plain by default
    assert packed["stages.1.0.mlp.up"].bits == 6
    assert packed["modulation"].bits == 4
    assert "merges.0.reduction" not in packed
    assert "stages.0.0.mlp.up" not in packed


def test_a_refused_choice_changes_nothing() -> None:
    model = assemble(plain_weights(GENERATOR), build, mx.float32).model
    before = arrays_of(model)
    with pytest.raises(KmidiError, match="no layer that can be quantised is called 'embedding'"):
        quantize(model, Choice(4, keep=("embedding",)))
    after = arrays_of(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_for_adapters(bits: int) -> None:
    model = assemble(plain_weights(GENERATOR), build, mx.float32).model
    packed = quantize_base(model, bits)
    assert {packing.bits for packing in packed.values()} == {bits}
    assert quantize_base(model, 8) == packed  # quantised already
    trained = lora.attach(model, ["qkv:qv", "out"], rank=2, alpha=4.0)
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}

    def loss(model: nn.Module) -> mx.array:
        return mx.mean(mx.square(outputs(model, GENERATOR)))

    _, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    assert sorted(flat) == trained
    assert all(mx.max(mx.abs(g)).item() > 0 for name, g in flat.items() if name.endswith("lora_b"))


@pytest.mark.parametrize("config", RUNS, ids=lambda config: config.name)
def test_unpacked_they_are_the_numbers_that_they_mean(config: RunConfig, tmp_path: Path) -> None:
    weights = quantised_weights(config, Choice(6))
    save_arrays(tmp_path / "best.safetensors", weights.arrays, weights.metadata)
    packed = LOADERS[config.name](tmp_path, mx.float32, True).model
    plain = LOADERS[config.name](tmp_path, mx.float32, False).model
    layers = quantized_layers(packed)
    assert layers
    assert not quantized_layers(plain)
    found = arrays_of(plain)
    for name, layer in packed.named_modules():
        if name in layers:
            kind = {"group_size": layer.group_size, "bits": layer.bits}
            meant = mx.dequantize(layer.weight, layer.scales, layer.biases, **kind)
            np.testing.assert_allclose(found[f"{name}.weight"], np.array(meant), atol=1e-6)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    assert bool(quantized_layers(LOADERS[config.name](tmp_path, None, None).model)) is on_gpu


def test_only_linear_layers_can_be_used_quantised(tmp_path: Path) -> None:
    weights = plain_weights(GENERATOR)
    model = assemble(weights, build, mx.float32).model
    nn.quantize(model, 32, 4)
    save_arrays(tmp_path / "best.safetensors", arrays_of(model), weights.metadata)
    with pytest.raises(KmidiError, match=r"holds .*embedding.* quantised, and only linear layers"):
        load_generator(tmp_path, packed=True)
    with pytest.raises(KmidiError, match=r"f\.safetensors holds nothing quantised"):
        restructure(build(GENERATOR), {"nothing": Packing(4, 64)}, Path("f.safetensors"))


def test_what_mlx_quantised_without_a_word_is_loaded(tmp_path: Path) -> None:
    weights = quantised_weights(GENERATOR, Choice(6))
    metadata = {name: value for name, value in weights.metadata.items() if name != DESCRIPTION}
    save_arrays(tmp_path / "best.safetensors", weights.arrays, metadata)
    model = load_generator(tmp_path, packed=True).model
    assert describe(quantized_layers(model)) == weights.metadata[DESCRIPTION]
    assert load_arrays(tmp_path / "best.safetensors")[1] == metadata | {"format_version": 1}
