"""`torch.compile` takes every network as one graph, and steps need no second one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kmidi_mlx.config import (
    EmotionRecognizerModelConfig,
    MidiTransformerConfig,
    SpectocloudVitConfig,
)

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models.emotion_recognizer import EmotionRecognizer  # noqa: E402
from kmidi_torch.models.kv_cache import KVCache  # noqa: E402
from kmidi_torch.models.midi_transformer import Conditions, EmotionMIDITransformer  # noqa: E402
from kmidi_torch.models.spectocloud_vit import SpectocloudViT  # noqa: E402

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As one graph, run without making machine code."""
    made: Callable[..., Any] = torch.compile(
        function, backend="eager", fullgraph=True, dynamic=False
    )
    return made


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def transformer() -> Any:
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    return model


def conditions(slots: int) -> Any:
    chords = torch.arange(2 * slots).reshape(2, slots)
    return Conditions(torch.ones(2, 64), chords, torch.tensor([3, 4]))


def tokens(count: int) -> Any:
    return torch.randint(0, 388, (2, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_the_transformer_is_one_graph(transformer: Any, checkpointing: bool) -> None:
    transformer.checkpoint_blocks = checkpointing
    index = torch.zeros_like(tokens(20))
    gradients = []
    for run in (transformer, compiled(transformer)):
        transformer.zero_grad()
        run(tokens(20), conditions(3), index).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in transformer.parameters()])
    for plain, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(graph, plain)


def test_steps_share_one_graph(transformer: Any) -> None:
    events, cross, rows = tokens(40), transformer.cross_keys_values(conditions(1)), []
    step = compiled(transformer.step)
    for run in (transformer.step, step):
        cache = KVCache(TINY, 2)
        rows.append([])
        for number, column in enumerate(events.T):
            cache.reserve(1)
            # what was compiled for the first step has to serve all others, past the wrap
            stance = "fail_on_recompile" if number else "default"
            with torch.compiler.set_stance(stance):
                logits, cache.keys, cache.values = run(
                    column[:, None], cache.next_place(), cache.keys, cache.values, cross
                )
            cache.offset += 1
            rows[-1].append(logits)
    torch.testing.assert_close(torch.stack(rows[1]), torch.stack(rows[0]))


@pytest.mark.parametrize("shift", [True, False])
def test_training_the_spectocloud_network_is_one_graph(shift: bool) -> None:
    model = SpectocloudViT(
        SpectocloudVitConfig(
            dims=(16, 32),
            depths=(2, 1),
            patch_size=8,
            window_size=4,
            head_dim=16,
            condition_dim=16,
            decoder_dim=32,
            shift=shift,
        )
    )
    model.initialise(0)
    given = torch.rand(2, 128, 64), torch.rand(2, 32), torch.rand(2, 64)
    points = torch.arange(0, 3000, 60)

    def loss(*given: Any) -> Any:
        return model(*given, model.constants(points)).square().mean()

    gradients = []
    for run in (loss, compiled(loss)):
        model.zero_grad()
        run(*given).backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(graph, plain)


def test_training_the_recogniser_is_one_graph() -> None:
    model = EmotionRecognizer(
        EmotionRecognizerModelConfig(n_mels=16, dim=24, labels=("happy", "sad"), num_cues=5)
    )
    model.initialise(0)
    given = torch.rand(2, 50, model.bands), torch.tensor([50, 20]), torch.rand(2, 48)

    def loss(*given: Any) -> Any:
        found = model(*given)
        return sum(part.square().mean() for part in (found.numbers, found.logits, found.cues))

    gradients = []
    for run in (loss, compiled(loss)):
        model.zero_grad()
        run(*given).backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(graph, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler about itself
def test_a_compiled_step_computes_the_same(transformer: Any) -> None:
    # through the compiler to machine code; needs a C++ compiler
    cross, cache = transformer.cross_keys_values(conditions(1)), KVCache(TINY, 2)
    arguments = tokens(1), cache.next_place()
    expected, *_ = transformer.step(*arguments, cache.keys, cache.values, cross)
    fresh = KVCache(TINY, 2)
    found, *ring = torch.compile(transformer.step, dynamic=False)(
        *arguments, fresh.keys, fresh.values, cross
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ring, [cache.keys, cache.values], atol=1e-5, rtol=1e-5)
