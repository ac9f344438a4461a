from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from bench import kernels
from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.config_section import ConfigError
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

SMALL = {"dims": (16, 32), "depths": (2, 1), "patch_size": 8, "window_size": 4, "head_dim": 16}
SMALL |= {"condition_dim": 16, "decoder_dim": 32}

Inputs = tuple[mx.array, mx.array, mx.array]


def network(**sizes: object) -> SpectocloudViT:
    model = SpectocloudViT(SpectocloudVitConfig(**(SMALL | sizes)))  # type: ignore[arg-type]
    model.initialise(0)
    # shift and bias tables have to matter
    for blocks in model.stages:
        for block in blocks:
            table = block.attention.bias_table
            block.attention.bias_table = mx.random.normal(table.shape, key=mx.random.key(1))
    return model


def inputs(batch: int, seed: int = 0) -> Inputs:
    draw = np.random.default_rng(seed)
    return (
        mx.array(draw.uniform(size=(batch, 128, 64)).astype(np.float32)),
        mx.array(draw.uniform(-1, 1, (batch, 32)).astype(np.float32)),
        mx.array(draw.normal(size=(batch, 64)).astype(np.float32)),
    )


@pytest.fixture(scope="module")
def real_model() -> SpectocloudViT:
    model = SpectocloudViT(SpectocloudVitConfig())
    model.initialise(0)
    mx.eval(model.parameters())
    return model


def test_the_network_has_12_million_weights(real_model: SpectocloudViT) -> None:
    count = sum(weight.size for _, weight in tree_flatten(real_model.parameters()))
    assert abs(count / 12e6 - 1.0) < 0.03


def test_a_frame_launches_few_kernels(real_model: SpectocloudViT) -> None:
    constants, given = real_model.constants(), inputs(1)
    mx.eval(constants.biases, constants.queries)
    counted = kernels.count(lambda: [mx.compile(lambda *x: real_model(*x, constants))(*given)])
    assert 60 < counted.total() <= 190  # now 110
    assert not {"Gather", "GatherAxis", "ScatterAxis", "Scatter"} & set(counted)


def test_a_frame_costs_less_than_800_million_operations(real_model: SpectocloudViT) -> None:
    constants, given = real_model.constants(), inputs(1)
    counted = kernels.products(lambda: [real_model(*given, constants)])
    assert 5e8 < counted < 8e8


def test_no_tensor_has_more_than_four_axes(real_model: SpectocloudViT) -> None:
    """The Neural Engine holds four; nor does it gather or roll well."""
    constants = real_model.constants()
    mx.eval(constants.biases, constants.queries)
    primitives: list[dict[str, Any]] = []

    def record(found: dict[str, Any]) -> None:
        if found["type"] == "primitive":
            primitives.append(found)

    mx.disable_compile()
    try:
        mx.export_function(record, lambda *given: real_model(*given, constants), *inputs(2))
    finally:
        mx.enable_compile()
    assert len(primitives) > 500
    shapes = [shape for found in primitives for _, shape, _ in found["outputs"]]
    assert max(len(shape) for shape in shapes) <= 4
    names = {found["name"] for found in primitives}
    assert "Matmul" in names
    assert not [name for name in names if "Gather" in name or "Scatter" in name or "Roll" in name]


def test_counted_products_are_those_of_a_layer() -> None:
    layer, plain = nn.Linear(5, 7), nn.Linear(5, 7, bias=False)
    x = mx.zeros((3, 5))
    assert kernels.products(lambda: [layer(x), plain(x)]) == 2 * (2 * 3 * 5 * 7)


def test_clouds_are_in_range_whatever_comes_in() -> None:
    model = network()
    for scale in (0.0, 1.0, 100.0):
        clouds = np.array(model(*(scale * given for given in inputs(2)), model.constants(50)))
        assert clouds.shape == (2, 50, 10)
        assert clouds.dtype == np.float32
        assert (np.abs(clouds[..., :3]) <= 1.0).all()
        assert (clouds[..., 3:] >= 0.0).all()
        assert (clouds[..., 3:] <= 1.0).all()


def test_every_row_of_a_batch_is_a_cloud_of_its_own() -> None:
    model = network()
    constants, given = model.constants(40), inputs(3)
    together = np.array(model(*given, constants))
    for row in range(3):
        alone = model(*(part[row : row + 1] for part in given), constants)
        np.testing.assert_allclose(np.array(alone[0]), together[row], atol=1e-5)


def test_fewer_points_are_the_first_points() -> None:
    model, given = network(), inputs(1)
    full = np.array(model(*given, model.constants(3000)))
    for count in (1, 200, 1200):
        np.testing.assert_allclose(
            np.array(model(*given, model.constants(count))), full[:, :count], atol=1e-5
        )
    some = mx.array([3, 4, 1999])
    chosen = np.array(model(*given, model.constants(some)))
    np.testing.assert_allclose(chosen, full[:, np.array(some)], atol=1e-5)
    with pytest.raises(KmidiError, match="1 to 3000"):
        model.constants(3001)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_input_matters(part: int) -> None:
    model = network()
    given = list(inputs(1))
    before = np.array(model(*given, model.constants(100)))
    given[part] = inputs(1, seed=1)[part]
    after = np.array(model(*given, model.constants(100)))
    assert np.abs(after - before).max() > 1e-4


def test_all_weights_learn() -> None:
    model, given = network(), inputs(2)

    def loss(model: SpectocloudViT) -> mx.array:
        clouds = model(*given, model.constants(200))
        return mx.sum(mx.square(clouds - mx.random.uniform(shape=clouds.shape)))

    _, gradients = nn.value_and_grad(model, loss)(model)
    silent = [name for name, value in tree_flatten(gradients) if not mx.any(value != 0).item()]
    assert silent == []


def test_recomputing_activations_changes_no_gradient() -> None:
    given, target = inputs(2), mx.random.uniform(shape=(2, 60, 10), key=mx.random.key(2))

    def gradients(checkpointing: bool) -> dict[str, mx.array]:
        model = network()
        model.checkpoint_blocks = checkpointing

        def loss(model: SpectocloudViT) -> mx.array:
            return mx.sum(mx.square(model(*given, model.constants(60)) - target))

        return dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))

    plain, recomputed = gradients(False), gradients(True)
    for name, value in plain.items():
        np.testing.assert_allclose(np.array(recomputed[name]), np.array(value), atol=1e-5)


def test_without_shift_the_same_weights_fit_and_windows_stay_apart() -> None:
    shifted, still = network(), network(shift=False)
    assert [(n, v.shape) for n, v in tree_flatten(shifted.parameters())] == [
        (n, v.shape) for n, v in tree_flatten(still.parameters())
    ]
    given = inputs(1)
    ours, theirs = (model(*given, model.constants(80)) for model in (shifted, still))
    assert mx.max(mx.abs(ours - theirs)).item() > 1e-4


@pytest.mark.parametrize("activation", ["relu2", "gelu"])
def test_half_precision_is_close(activation: str) -> None:
    model, given = network(activation=activation), inputs(2)
    exact = np.array(model(*given, model.constants(100)))
    model.set_dtype(mx.float16)
    half = model(*given, model.constants(100))
    assert half.dtype == mx.float32
    np.testing.assert_allclose(np.array(half), exact, atol=2e-2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depths": (2, 2)}, "depths"),
        ({"head_dim": 48}, "48"),
        ({"window_size": 5}, "window_size"),
        ({"dims": (64, 128, 256, 512, 1024), "depths": (1, 1, 1, 1, 1), "patch_size": 8}, "stages"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpectocloudVitConfig(**sizes)  # type: ignore[arg-type]
