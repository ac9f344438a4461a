"""Gives a generator in MLX and its mirror in PyTorch the same weights; watches over near ties."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.config import MidiTransformerConfig

# These tests run where PyTorch is installed (extra `torch`); the rest of kmidi needs none.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

# events 33 and on overwrite the ring; past 128 positions are moved back
TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)
# what a logit may be off by without changing an event; the frameworks differ by 5.1e-5 at most
MARGIN = 2e-4


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small are slower on many threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair_of() -> Callable[..., tuple[Any, Any]]:
    """A function of a seed that makes (MLX, PyTorch) with strong and odd opinions."""
    import mlx.core as mx
    import torch
    from mlx.utils import tree_flatten

    from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer as Ours
    from kmidi_torch.models.midi_transformer import EmotionMIDITransformer as Theirs

    def make(seed: int = 0) -> tuple[Any, Any]:
        ours, theirs, rng = Ours(TINY), Theirs(TINY), np.random.default_rng(seed)
        weights = {
            name: (0.2 * rng.normal(size=value.shape) + name.endswith("norm.weight")).astype("f")
            for name, value in tree_flatten(ours.parameters())
        }
        ours.load_weights([(name, mx.array(value)) for name, value in weights.items()])
        theirs.load_state_dict({name: torch.from_numpy(v) for name, v in weights.items()})
        return ours, theirs

    return make


@pytest.fixture
def no_near_ties(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fail where an event hangs on less than `MARGIN`; counts the draws that did not.

    Two frameworks round differently, and sooner or later rounding decides between two events. A
    piece without such a moment has to be equal to the last event wherever it is computed. The
    seeds of the tests are chosen so that five times the margin changes nothing.
    """
    import torch

    from kmidi_torch.generation import sampler

    plain_draw, rng, steady = sampler.draw, np.random.default_rng(0), [0]

    def draw(logits: Any, *others: Any) -> Any:
        event = plain_draw(logits, *others)
        nudge = torch.from_numpy(rng.normal(0, MARGIN, logits.shape).astype(np.float32))
        for nudged in (logits + nudge, logits - nudge):
            assert plain_draw(nudged, *others).item() == event.item(), (
                f"draw {steady[0]} is a near tie: choose another seed"
            )
        steady[0] += 1
        return event

    monkeypatch.setattr(sampler, "draw", draw)
    return steady
