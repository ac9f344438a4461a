"""A base that PyTorch rounds holds the numbers that MLX's quantised layers mean, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from numpy.typing import NDArray

from kmidi_mlx.config import (
    EmotionRecognizerModelConfig,
    MidiTransformerConfig,
    SpectocloudVitConfig,
)
from kmidi_mlx.models import emotion_recognizer as our_recognizer
from kmidi_mlx.models import lora
from kmidi_mlx.models import midi_transformer as our_midi
from kmidi_mlx.models import quantization as ours
from kmidi_mlx.models import spectocloud_vit as our_cloud
from kmidi_mlx.quantization import BITS, GROUP_SIZES, Packing

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import emotion_recognizer as their_recognizer  # noqa: E402
from kmidi_torch.models import midi_transformer as their_midi  # noqa: E402
from kmidi_torch.models import quantization as theirs  # noqa: E402
from kmidi_torch.models import spectocloud_vit as their_cloud  # noqa: E402

MIDI = MidiTransformerConfig(
    hidden_dim=96,
    num_layers=2,
    num_heads=3,
    ffn_dim=128,
    context_length=32,
    cross_attention_layers=(0,),
)
CLOUD = SpectocloudVitConfig(
    dims=(32, 64),
    depths=(2, 1),
    patch_size=8,
    window_size=4,
    head_dim=16,
    condition_dim=32,
    decoder_dim=32,
)
HEARER = EmotionRecognizerModelConfig(n_mels=32, dim=32, num_layers=2, kernel_size=3)
NETWORKS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (
        lambda: our_midi.EmotionMIDITransformer(MIDI),
        lambda: their_midi.EmotionMIDITransformer(MIDI),
    ),
    (lambda: our_cloud.SpectocloudViT(CLOUD), lambda: their_cloud.SpectocloudViT(CLOUD)),
    (
        lambda: our_recognizer.EmotionRecognizer(HEARER),
        lambda: their_recognizer.EmotionRecognizer(HEARER),
    ),
]


def weights() -> NDArray[np.float32]:
    """Rows as they occur, and rows that quantisers stumble over."""
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    weight[1] = 0.0
    weight[2] = 0.37
    weight[3] = -0.37
    weight[4] = np.abs(weight[4])
    weight[5] = -np.abs(weight[5])
    weight[6] *= 1e-9
    weight[7] *= 1e6
    weight[8, ::2] = -weight[8, 1::2]
    weight[9] = np.round(3 * weight[9])
    return weight


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_a_weight_is_rounded_as_in_mlx(bits: int, size: int) -> None:
    weight = weights()
    packed = mx.quantize(mx.array(weight), group_size=size, bits=bits)
    expected = np.array(mx.dequantize(*packed, group_size=size, bits=bits))
    found = theirs.rounded(torch.from_numpy(weight), Packing(bits, size)).numpy()
    assert np.abs(expected - weight)[0].max() > 1e-4
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("our_kind", "their_kind"), NETWORKS)
def test_the_same_layers_of_a_network_are_rounded(
    same_weights: Callable[..., Any],
    our_kind: Callable[[], Any],
    their_kind: Callable[[], Any],
    bits: int,
) -> None:
    pair = our_kind(), their_kind()
    before = same_weights(*pair)
    packed = ours.quantize_base(pair[0], bits)
    assert theirs.round_base(pair[1], bits) == packed
    layers = {n: one for n, one in pair[0].named_modules() if isinstance(one, nn.QuantizedLinear)}
    assert layers.keys() == packed.keys()
    state = pair[1].state_dict()
    for name, layer in layers.items():
        plain = np.array(lora.plain_weight(layer))
        np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), plain)
    others = before.keys() - {f"{name}.weight" for name in layers}
    assert others
    for name in others:
        np.testing.assert_array_equal(state[name].numpy(), before[name])
