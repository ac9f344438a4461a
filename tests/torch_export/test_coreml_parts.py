"""Parts of the export to Core ML: folding, rounding of constants, quantisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from kmidi_torch.export.coreml.compare import half_bound
from kmidi_torch.export.coreml.graph import trace
from kmidi_torch.export.coreml.precision import half_nodes
from kmidi_torch.export.coreml.quantize import GROUP_ROWS, Quantisation, palettise
from kmidi_torch.export.exportable import Exportable, Port


class Mixed(nn.Module):
    """A measure of the input with fixed matrices, then a layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        nn.init.normal_(self.norm.weight)
        self.register_buffer("table", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        lower = x.new_ones(8, 8).tril() - torch.diag(x.new_full((8,), 0.3))
        measured = torch.where(x > 0.2, x @ lower, 0.0) * 0.1
        hidden = functional.scaled_dot_product_attention(
            *(3 * [self.layer(measured)[None]]), scale=0.7
        )[0]
        return self.norm(hidden) * self.table * 0.1


@pytest.fixture(scope="module")
def mixed() -> Exportable:
    port = Port("x", (4, 8), "Numbers.")
    return Exportable(Mixed().eval(), "A test.", (port,), (Port("y", (4, 8), "Others."),))


def test_fixed_numbers_are_folded(mixed: Exportable) -> None:
    graph = trace(mixed)
    names = {str(node.target) for node in graph.program.graph.nodes}
    assert not any(
        part in name for part in ("new_", "tril", "diag", "ScalarOther") for name in names
    )
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    expected = mixed.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(graph.run({"x": x})["y"], expected, atol=1e-6)
    assert list(graph.weights()) == ["p_layer_weight"]


def test_only_what_is_computed_in_fp16_is_rounded(mixed: Exportable) -> None:
    graph = trace(mixed)
    rounded = graph.rounded(half_nodes("spectocloud"), None)
    before, after = graph.module.state_dict(), rounded.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer.weight", "layer.bias", "table"}
    for name in changed:
        assert torch.equal(after[name], before[name].half().float())
    numbers = {
        argument
        for node in rounded.module.graph.nodes
        for argument in [*node.args, *node.kwargs.values()]
        if isinstance(argument, float)
    }
    # the scale of attention and the last factor, but not the factor of the measure
    assert {float(np.float16(0.7)), float(np.float16(0.1)), 0.1} <= numbers
    everything = graph.rounded(half_nodes("midi_generator"), None).module.state_dict()
    assert torch.equal(everything["norm.weight"], before["norm.weight"])


def test_recogniser_rounds_only_its_products_over_time() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over_time, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.mean(self.over_time(x), dim=1))

    ports = (Port("x", (1, 4, 8), "Numbers."),), (Port("y", (1, 2), "Others."),)
    graph = trace(Exportable(Two().eval(), "A test.", *ports))
    after = graph.rounded(half_nodes("emotion_recognizer"), None).module.state_dict()
    changed = {name for name, v in graph.module.state_dict().items() if not v.equal(after[name])}
    assert changed == {"over_time.weight", "over_time.bias"}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32]))
def test_palettes_are_means_of_what_is_nearest(seed: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(16, 40)).astype(dtype)
    palette, indices = palettise(weight)
    assert palette.dtype == dtype
    assert palette.shape == (16,)
    assert indices.dtype == np.uint8
    flat = weight.ravel().astype(np.float64)
    apart = np.abs(flat[:, None] - palette.astype(np.float64))
    np.testing.assert_allclose(apart[np.arange(flat.size), indices], apart.min(axis=1), atol=1e-7)
    means = np.array([flat[indices == colour].mean() for colour in range(16)])
    np.testing.assert_allclose(palette, means, atol=0.02)
    # better than steps of equal size
    steps = np.linspace(flat.min(), flat.max(), 16)
    uniform = np.abs(flat[:, None] - steps).min(axis=1)
    assert np.square(apart.min(axis=1)).mean() < np.square(uniform).mean()
    assert palettise(weight)[0].tobytes() == palette.tobytes()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_eight_bits_leave_half_a_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(32, 40)) * rng.uniform(0.01, 3.0, size=(32, 1))).astype(np.float32)
    weight[3] = 0.0
    left = Quantisation("int8", False).left_of(weight)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(left - weight) <= 0.501 * step).all()
    assert not left[3].any()
    assert all(len(np.unique(row)) <= 255 for row in left)


def test_what_is_no_weight_of_whole_groups_stays() -> None:
    rng = np.random.default_rng(0)
    quantisation = Quantisation("int4-palette", grouped=True)
    for shape in ((8, 8), (388, 64), (4096,)):
        weight = rng.normal(size=shape).astype(np.float32)
        assert quantisation.left_of(weight) is weight
    weight = rng.normal(size=(2 * GROUP_ROWS, 64)).astype(np.float32)
    weight[:GROUP_ROWS] *= 0.2
    grouped = quantisation.left_of(weight)
    for rows in np.split(grouped, 2):
        assert len(np.unique(rows)) == 16
    alone = Quantisation("int4-palette", grouped=False).left_of(weight)
    assert len(np.unique(alone)) == 16
    assert np.square(grouped - weight).sum() < np.square(alone - weight).sum()


def test_bound_grows_with_what_is_expected() -> None:
    assert half_bound(np.array([0.1, -0.2])) == pytest.approx(0.02)
    assert half_bound(np.array([3.0, -50.0])) == pytest.approx(1.0)
