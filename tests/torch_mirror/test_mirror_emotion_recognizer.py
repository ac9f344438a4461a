"""The PyTorch recogniser hears what the MLX one hears, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.config import EmotionRecognizerModelConfig
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import emotion_recognizer as theirs  # noqa: E402

TINY = EmotionRecognizerModelConfig(
    n_mels=16,
    dim=24,
    num_layers=3,
    kernel_size=3,
    memory_frames=40,
    labels=("happy", "sad"),
    num_cues=5,
    norm_eps=1e-2,  # not the frameworks' own
)
DEFAULT = EmotionRecognizerModelConfig(labels=("happy", "sad", "calm"), num_cues=13)
DEAF = replace(TINY, semitones=False)
CONFIGS = {
    "tiny": TINY,
    "bare": EmotionRecognizerModelConfig(n_mels=16, dim=24, num_layers=1),
    "deaf": DEAF,
    "deaf and bare": replace(DEAF, labels=(), num_cues=0),
    "default": DEFAULT,
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
# of the exporter about itself
exporting = pytest.mark.filterwarnings("ignore::FutureWarning")

Pair = tuple[EmotionRecognizer, Any]
Loader = Callable[..., dict[str, NDArray[np.float32]]]
Compare = Callable[[Any, Any], float]


@pytest.fixture(scope="module")
def tiny(same_weights: Loader) -> Pair:
    return pair_of(same_weights, TINY)


def pair_of(same_weights: Loader, config: EmotionRecognizerModelConfig) -> Pair:
    mine, other = EmotionRecognizer(config), theirs.EmotionRecognizer(config)
    same_weights(mine, other)
    # far out, tanh and sigmoid would hide what comes before
    mine.numbers.weight = 0.2 * mine.numbers.weight
    with torch.no_grad():
        other.numbers.weight *= 0.2
    return mine, other


def frames_of(
    config: EmotionRecognizerModelConfig, time: int, batch: int = 2, seed: int = 0
) -> NDArray[np.float32]:
    """Sound with a melody: mel bands of any strength, semitones that are mostly silent."""
    rng = np.random.default_rng((7, seed))
    mel = rng.uniform(0.0, 1.0, (batch, time, config.n_mels))
    semitones = np.maximum(rng.uniform(-1.0, 1.0, (batch, time, SEMITONES)), 0.0)
    semitones[..., ~np.isin(np.arange(SEMITONES) % 12, [0, 2, 3, 5, 7, 8, 11])] *= 0.5
    bands = [mel, semitones] if config.semitones else [mel]
    return np.concatenate(bands, axis=2).astype(np.float32)


def estimates_apart(apart: Compare, mine: Any, other: Any) -> float:
    """The largest difference in anything that was recognised."""
    found = []
    for field in fields(mine):
        one, two = getattr(mine, field.name), getattr(other, field.name)
        assert one.shape == tuple(two.shape), field.name
        found.append(apart(one, two) if one.size else 0.0)
    return max(found)


@every_config
def test_names_and_shapes_of_weights_are_equal(config: EmotionRecognizerModelConfig) -> None:
    mine = tree_flatten(EmotionRecognizer(config).parameters())
    other = theirs.EmotionRecognizer(config).state_dict()
    assert {name: tuple(value.shape) for name, value in mine} == {
        name: tuple(value.shape) for name, value in other.items()
    }


@every_config
@pytest.mark.parametrize("batch", [1, 3])
def test_whole_clips(
    same_weights: Loader, apart: Compare, config: EmotionRecognizerModelConfig, batch: int
) -> None:
    mine, other = pair_of(same_weights, config)
    mel = frames_of(config, 203, batch)  # not a whole number of patches
    frames = np.array([203, 4, 101], np.int32)[:batch]
    keep = np.random.default_rng(1).uniform(0.0, 2.0, (batch, mine.pooled_dim)).astype(np.float32)
    numbers = np.array(mine(mx.array(mel)).numbers)
    assert np.abs(numbers).min() < 0.97  # the weights stress the model but leave room
    assert numbers.std() > 0.05
    for given in ({}, {"frames": frames}, {"frames": frames, "keep": keep}):
        expected = mine(mx.array(mel), **{name: mx.array(part) for name, part in given.items()})
        found = other(
            torch.from_numpy(mel), **{name: torch.from_numpy(part) for name, part in given.items()}
        )
        assert found.numbers.dtype == found.logits.dtype == found.cues.dtype == torch.float32
        assert estimates_apart(apart, expected, found) < 1e-4  # measured 3.8e-6


@pytest.mark.parametrize("config", [TINY, DEAF], ids=["tiny", "deaf"])
@pytest.mark.parametrize("cuts", [[1, 2, 0, 5, 31, 4, 3, 60, 1], [103, 1, 1, 1, 1], [3] * 40])
def test_streams_in_pieces(
    same_weights: Loader, apart: Compare, config: EmotionRecognizerModelConfig, cuts: list[int]
) -> None:
    mine, other = pair_of(same_weights, config)
    mel = frames_of(config, sum(cuts))
    states, heard = [mine.start(2), other.start(2)], 0
    for count in cuts:
        piece = mel[:, heard : heard + count]
        heard += count
        expected, states[0] = mine.step(mx.array(piece), states[0])
        found, states[1] = other.step(torch.from_numpy(piece), states[1])
        if heard < config.patch_frames:
            assert expected is None
            assert found is None
        else:
            assert estimates_apart(apart, expected, found) < 1e-4  # measured 2.9e-6
            assert not found.numbers.requires_grad
            whole = other(torch.from_numpy(mel[:, :heard]))
            assert (found.numbers - whole.numbers).abs().max() < 1e-4  # measured 5.7e-7
    for field in fields(states[0]):
        parts = [getattr(state, field.name) for state in states]
        if field.name != "pasts":
            parts = [[part] for part in parts]
        for one, two in zip(*parts, strict=True):
            assert one.shape == tuple(two.shape), field.name
            assert not one.size or apart(one, two) < 1e-4 * max(1.0, np.array(one).max())


def test_a_step_leaves_the_state_it_was_given(tiny: Pair) -> None:
    mel = torch.from_numpy(frames_of(TINY, 30))
    first, second, third = mel[:, :9], mel[:, 9:20], mel[:, 20:]
    _, state = tiny[1].step(first, tiny[1].start(2))
    one, _ = tiny[1].step(second, state)
    tiny[1].step(third, state)
    again, _ = tiny[1].step(second, state)
    assert torch.equal(one.numbers, again.numbers)


@pytest.mark.parametrize("name", ["tiny", "deaf and bare"])
def test_gradients(
    same_weights: Loader, apart: Compare, gradients_apart: Compare, name: str
) -> None:
    config = CONFIGS[name]
    mine, other = pair_of(same_weights, config)
    mel, rng = frames_of(config, 61, 3, seed=4), np.random.default_rng(5)
    frames = np.array([61, 40, 9], np.int32)
    keep = (rng.uniform(size=(3, mine.pooled_dim)) < 0.7).astype(np.float32) / 0.7
    # every output counts; weights that are not all 1 tell columns apart
    shapes = {"numbers": 3, "logits": len(config.labels), "cues": config.num_cues}
    weights = {part: rng.normal(size=(3, size)) for part, size in shapes.items() if size}
    weights = {part: value.astype(np.float32) for part, value in weights.items()}

    def loss(model: EmotionRecognizer) -> mx.array:
        found = model(mx.array(mel), mx.array(frames), mx.array(keep))
        parts = [mx.square(getattr(found, name) - mx.array(w)) for name, w in weights.items()]
        return mx.sum(mx.stack([mx.sum(part) for part in parts]))

    expected_loss, expected = nn.value_and_grad(mine, loss)(mine)
    found = other(torch.from_numpy(mel), torch.from_numpy(frames), torch.from_numpy(keep))
    found_loss = sum(
        (getattr(found, name) - torch.from_numpy(weight)).square().sum()
        for name, weight in weights.items()
    )
    found_loss.backward()
    assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert gradients_apart(expected, other) < 1e-4  # measured 2.8e-5


@pytest.mark.parametrize("seconds", [2, 30])
def test_the_real_size(same_weights: Loader, apart: Compare, seconds: int) -> None:
    mine, other = pair_of(same_weights, DEFAULT)
    mel = frames_of(DEFAULT, int(seconds * 62.5), 1)
    expected = mine(mx.array(mel))
    assert estimates_apart(apart, expected, other(torch.from_numpy(mel))) < 1e-4  # measured 7.6e-6


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.002), ("bfloat16", 0.01)])
def test_half_precision_is_close(tiny: Pair, apart: Compare, dtype: str, bound: float) -> None:
    half = theirs.EmotionRecognizer(TINY)
    half.load_state_dict(tiny[1].state_dict())
    half.to(getattr(torch, dtype))
    mel = torch.from_numpy(frames_of(TINY, 200))
    expected, found = tiny[1](mel), half(mel)
    state, streamed = half.start(2), None
    for piece in mel.split(7, dim=1):
        streamed, state = half.step(piece, state)
    for one in (found, streamed):
        assert one.numbers.dtype == one.logits.dtype == one.cues.dtype == torch.float32
        exact = expected.numbers.detach().numpy()
        assert apart(exact, one.numbers) < bound  # measured 2.1e-4, 1.4e-3
        for part in ("logits", "cues"):  # not squeezed into [-1, 1]
            exact = getattr(expected, part).detach().numpy()
            assert apart(exact, getattr(one, part)) < 6 * bound  # measured 2.7e-3, 2.0e-2


def test_initialise_draws_as_mlx_does() -> None:
    config = replace(DEFAULT, dim=64, n_mels=64)
    mine, other = EmotionRecognizer(config), theirs.EmotionRecognizer(config)
    again = theirs.EmotionRecognizer(config)
    for model in (mine, other, again):
        model.initialise(0)
    same = again.state_dict()
    for name, value in tree_flatten(mine.parameters()):
        expected, drawn = np.array(value), other.state_dict()[name]
        assert torch.equal(drawn, same[name]), name
        if expected.ndim < 2:
            np.testing.assert_array_equal(drawn.numpy(), expected, err_msg=name)
        else:
            spread, sure = expected.std(), expected.size**-0.5
            assert abs(drawn.std().item() / spread - 1.0) < 5.0 * sure, name
            assert abs(drawn.mean().item()) < 5.0 * sure * spread, name


@exporting
def test_a_whole_clip_is_exported_with_any_batch_and_time(tiny: Pair) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    steps = torch.export.Dim("steps", min=2, max=100_000)
    example = torch.from_numpy(frames_of(TINY, 20, 3)), torch.tensor([20, 8, 13]).int()
    program = torch.export.export(
        tiny[1], example, dynamic_shapes=({0: batch, 1: TINY.patch_frames * steps}, {0: batch})
    )
    for size, time in ((1, 8), (2, 400), (5, 36)):
        mel = torch.from_numpy(frames_of(TINY, time, size))
        frames = torch.full((size,), time - 3).int()
        expected, found = tiny[1](mel, frames), program.module()(mel, frames)
        for part in ("numbers", "logits", "cues"):
            torch.testing.assert_close(getattr(found, part), getattr(expected, part))


@exporting
def test_a_graph_of_fixed_size_holds_only_what_all_exporters_know(tiny: Pair) -> None:
    example = (torch.from_numpy(frames_of(TINY, 40, 1)),)
    graph = torch.export.export(tiny[1].eval(), example).run_decompositions({}).graph
    values = [node.meta.get("val") for node in graph.nodes]
    assert max(value.ndim for value in values if isinstance(value, torch.Tensor)) <= 4
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not {name for name in names if "alias" in name or "index" in name or "nonzero" in name}
