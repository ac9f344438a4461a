"""PyTorch reads what MLX has quantised: as the plain weights that MLX computes with."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint import save_arrays
from kmidi_mlx.config import MidiDataConfig, MidiGeneratorConfig, MidiTransformerConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import loading as mlx_loading
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.models.quantization import quantize
from kmidi_mlx.quantization import DESCRIPTION, Choice, describe
from kmidi_torch import loading
from kmidi_torch.models.midi_transformer import Conditions as TorchConditions

RUN = MidiGeneratorConfig(
    model=MidiTransformerConfig(
        hidden_dim=96,
        num_layers=2,
        num_heads=3,
        ffn_dim=128,
        context_length=32,
        cross_attention_layers=(0,),
    ),
    data=MidiDataConfig(sequence_length=16),
)


@pytest.fixture(params=[8, 6, 4])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint with scales in half precision."""
    model = EmotionMIDITransformer(RUN.model)
    model.initialise(1)
    model.set_dtype(mx.float16)
    packed = quantize(model, Choice(request.param, layer_bits={"qkv": 6}))
    arrays = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    metadata = {"model": RUN.name, "config": config_to_dict(RUN), DESCRIPTION: describe(packed)}
    save_arrays(tmp_path / "best.safetensors", arrays, metadata)
    return tmp_path


def test_torch_has_the_weights_that_mlx_computes_with(folder: Path) -> None:
    ours = mlx_loading.load_generator(folder, mx.float32, packed=True).model
    theirs = loading.load_generator(folder).model
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, nn.QuantizedLinear)}
    assert len(layers) == 13
    found = theirs.state_dict()
    for name, value in tree_flatten(ours.parameters()):
        layer, _, part = name.rpartition(".")
        if layer not in layers:
            assert np.array_equal(found[name].numpy(), np.array(value))
        elif part == "weight":
            q = layers[layer]
            value = mx.dequantize(value, q.scales, q.biases, q.group_size, q.bits)
            assert np.array_equal(found[name].numpy(), np.array(value))


def test_both_compute_the_same(folder: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 388, (1, 16))
    ours = mlx_loading.load_generator(folder, mx.float32, packed=True).model
    conditions = Conditions(mx.ones((1, 64)), mx.array([[4]]), mx.array([2]))
    found = ours(mx.array(tokens), conditions, mx.zeros((1, 16), mx.int32))
    theirs = loading.load_generator(folder).model
    conditions = TorchConditions(torch.ones(1, 64), torch.tensor([[4]]), torch.tensor([2]))
    with torch.no_grad():
        same = theirs(torch.tensor(tokens), conditions, torch.zeros(1, 16, dtype=torch.int64))
    np.testing.assert_allclose(np.array(found), same.numpy(), atol=1e-4)


def test_damage_is_one_sentence_here_too(folder: Path) -> None:
    from kmidi_mlx.checkpoint import load_arrays

    arrays, metadata = load_arrays(folder / "best.safetensors")
    arrays["emotion_in.scales"][0, 0] = np.nan
    save_arrays(folder / "best.safetensors", arrays, metadata)
    with pytest.raises(KmidiError, match=r"NaN or Inf in emotion_in\.scales"):
        loading.load_generator(folder)
