"""Compared with `mlx.core.dequantize`, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import dequantize, dequantized

HERE = Path("best.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_layout_is_that_of_mlx(bits: int, group: int, dtype: str) -> None:
    # more rows than are unpacked at once
    weight = np.random.default_rng(bits).normal(size=(300, 256)).astype(dtype)
    packed, scales, biases = mx.quantize(mx.array(weight), group, bits)
    theirs = np.array(mx.dequantize(packed, scales, biases, group, bits))
    arrays = {
        "layer.weight": np.array(packed),
        "layer.scales": np.array(scales),
        "layer.biases": np.array(biases),
    }
    ours, how = dequantized(arrays, {"layer.weight": weight.shape}, HERE)
    assert how == {"layer.weight": f"{bits} bits in groups of {group}"}
    assert ours.keys() == {"layer.weight"}
    assert ours["layer.weight"].dtype == theirs.dtype
    assert np.array_equal(ours["layer.weight"], theirs)
    assert np.abs(theirs - weight).max() <= 1.01 * np.array(scales).astype(np.float32).max()


def test_a_quantised_network_comes_back_with_its_embeddings() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 64)
            self.layers = [nn.Linear(64, 128), nn.Linear(128, 64, bias=False)]
            self.norm = nn.RMSNorm(64)

    network = Network()
    plain = {name: np.array(value) for name, value in tree_flatten(network.parameters())}
    shapes = {name: value.shape for name, value in plain.items()}
    nn.quantize(network, group_size=32, bits=8)
    arrays = {name: np.array(value) for name, value in tree_flatten(network.parameters())}
    assert arrays["embedding.weight"].dtype == np.uint32
    ours, how = dequantized(arrays, shapes, HERE)
    assert how.keys() == {"embedding.weight", "layers.0.weight", "layers.1.weight"}
    assert {name: value.shape for name, value in ours.items()} == shapes
    for name, value in ours.items():
        assert np.abs(value - plain[name]).max() < (0.05 if name in how else 1e-9)


def test_what_is_not_quantised_is_left_alone() -> None:
    arrays = {
        "a.weight": np.ones((2, 32), np.float32),
        "lonely.scales": np.ones(3, np.float32),
        "gain.scales": np.ones(3, np.float32),
        "gain.weight": np.ones(3, np.float32),
    }
    expected = {"a.weight": (2, 32), "gain.scales": (3,), "gain.weight": (3,)}
    plain, how = dequantized(arrays, expected, HERE)
    assert plain == arrays
    assert how == {}


def quantised(**changes: Any) -> dict[str, Any]:
    packed, scales, biases = mx.quantize(mx.ones((4, 64)), 32, 4)
    arrays = {"a.weight": np.array(packed), "a.scales": np.array(scales)}
    return arrays | {"a.biases": np.array(biases)} | changes


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({k: v for k, v in quantised().items() if k != "a.biases"}, "MLX's mode 'affine'"),
        (quantised(**{"a.scales": np.ones((4, 2), np.uint8)}), "MLX's mode 'affine'"),
        (quantised(**{"a.weight": np.ones((4, 8), np.float32)}), "MLX's mode 'affine'"),
        (quantised(**{"a.weight": np.ones((4, 9), np.uint32)}), "does not fit a weight of"),
        (quantised(**{"a.weight": np.ones((3, 8), np.uint32)}), "does not fit a weight of"),
        (quantised(**{"a.scales": np.ones((4, 3), np.float32)}), "does not fit a weight of"),
        (quantised(**{"a.scales": np.ones(4, np.float32)}), "does not fit a weight of"),
        (quantised(**{"a.biases": np.ones((4, 1), np.float32)}), "does not fit a weight of"),
        (quantised(**{"a.weight": np.ones((), np.uint32)}), "does not fit a weight of"),
    ],
)
def test_a_layout_that_cannot_be_is_told(arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(KmidiError, match=rf"best\.safetensors: a\.weight is .*{complaint}"):
        dequantized(arrays, {"a.weight": (4, 64)}, HERE)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_other_modes_of_mlx_are_told(mode: str) -> None:
    packed, scales = mx.quantize(mx.ones((4, 64)), mode=mode)
    arrays = {"a.weight": np.array(packed), "a.scales": np.array(scales)}
    with pytest.raises(KmidiError, match="not quantised in MLX's mode 'affine'"):
        dequantized(arrays, {"a.weight": (4, 64)}, HERE)


def test_bits_run_across_words() -> None:
    # 0..31 in five bits each, lowest bit first, worked out by arithmetic of whole numbers
    stream = sum(value << (5 * place) for place, value in enumerate(range(32)))
    packed = np.frombuffer(stream.to_bytes(20, "little"), "<u4").reshape(1, 5)
    one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    assert dequantize(packed, one, zero, 5).tolist() == [list(range(32))]
