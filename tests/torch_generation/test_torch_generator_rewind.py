"""Taking events back and giving events to read: PyTorch does what MLX does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation import generator as ours
from kmidi_mlx.models import kv_cache as ours_cache
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.generation import generator as theirs  # noqa: E402
from kmidi_torch.models import kv_cache as theirs_cache  # noqa: E402

HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
LIVELY = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
GUIDED = SamplingConfig(guidance_scale=2.5, min_p=0.01)
TUNE = [VELOCITY + 9, 60, TIME_SHIFT + 14, 64, TIME_SHIFT + 30, NOTE_OFF + 60, TIME_SHIFT + 9, 67]
Pairs = Callable[..., tuple[Any, Any]]


def stormed(stream: Any, seed: int) -> list[int]:
    """Reads events under rewinds, given events and changes; ends every note."""
    rng, kept = np.random.default_rng(seed), []
    for turn in range(24):
        kept += [stream.next_event() for _ in range(int(rng.integers(3, 20)))]
        taken = stream.rewind(int(rng.integers(0, min(14, stream.rewindable))))
        del kept[len(kept) - len(taken) :]
        what = turn % 6
        if what == 0:
            stream.set_emotion(SAD if turn % 4 else HAPPY)
        elif what == 1:
            stream.set_harmony(turn, turn)
        elif what == 2:
            stream.set_sampling(LIVELY if turn % 4 else GUIDED)
        elif what == 3:
            stream.set_seed(turn)
        given = TUNE[: int(rng.integers(0, 9))] * int(rng.integers(0, 3))
        stream.feed(given)
        kept += given
    return [*kept, *(stream.next_event() for _ in range(70)), *stream.finish()]


@pytest.mark.parametrize(("sampling", "seed"), [(LIVELY, 1), (GUIDED, 2)])
def test_a_storm_leaves_the_same_events(
    monkeypatch: pytest.MonkeyPatch, pair_of: Pairs, sampling: SamplingConfig, seed: int
) -> None:
    for module in (ours_cache, theirs_cache):
        monkeypatch.setattr(module, "CAPACITY_STEP", 8)  # grows, wraps, is moved back
        monkeypatch.setattr(module, "REBASE_CONTEXTS", 2)
    mine, other = pair_of(seed)
    found, expected = (
        stormed(module.EventGenerator(model, sampling, seed, HAPPY), seed)
        for module, model in ((theirs, other), (ours, mine))
    )
    assert found == expected
    assert len(found) > 200


@pytest.mark.parametrize("sampling", [LIVELY, GUIDED])
def test_what_is_taken_back_comes_again(pair_of: Pairs, sampling: SamplingConfig) -> None:
    stream = theirs.EventGenerator(pair_of(2)[1], sampling, 2, SAD)
    written = [stream.next_event() for _ in range(28)]
    for count in (0, 3, 28, 11):
        taken = stream.rewind(count)
        assert taken == written[28 - len(taken) :]
        assert [stream.next_event() for _ in taken] == taken
    stream.feed(stream.rewind(9))
    other = theirs.EventGenerator(pair_of(2)[1], sampling, 2, SAD)
    assert [other.next_event() for _ in range(28)] == written
    assert [stream.next_event() for _ in range(60)] == [other.next_event() for _ in range(60)]


def test_the_ring_stays_where_it_is(pair_of: Pairs) -> None:
    stream = theirs.EventGenerator(pair_of()[1], LIVELY)
    cache = stream._decoder._cache  # type: ignore[attr-defined]
    places = [array.data_ptr() for array in cache.keys + cache.values]
    for _ in range(4):
        [stream.next_event() for _ in range(12)]
        stream.rewind(5)
        stream.feed(TUNE[:3])
    assert places == [array.data_ptr() for array in cache.keys + cache.values]


@pytest.mark.parametrize(("count", "back"), [(20, 0), (20, 13), (90, 31), (150, 8)])
def test_both_rings_hide_the_same(count: int, back: int) -> None:
    from kmidi_mlx.config import MidiTransformerConfig

    config = MidiTransformerConfig(
        hidden_dim=64, num_layers=1, num_heads=1, ffn_dim=64, context_length=32,
        cross_attention_layers=(),
    )  # fmt: skip
    caches = ours_cache.KVCache(config), theirs_cache.KVCache(config)
    for cache in caches:
        for _ in range(count):
            cache.reserve(1)
            cache.offset += 1
        cache.rewind(back)
        cache.reserve(1)
        cache.offset += 1
    mine, other = (cache.next_place() for cache in caches)
    for ours_part, theirs_part in zip(mine, other, strict=True):
        np.testing.assert_array_equal(np.array(ours_part), theirs_part.numpy())
    np.testing.assert_array_equal(
        np.array(caches[0].slot_positions()), caches[1].slot_positions().numpy()
    )
