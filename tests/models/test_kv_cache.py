from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_mlx.models import kv_cache
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)
LONG = MidiTransformerConfig(**{**vars(TINY), "context_length": 2048})


def numbered(start: int, count: int, batch: int = 1) -> mx.array:
    """Keys `(batch, 2, count, 32)` that hold their own position in every entry."""
    positions = mx.arange(start, start + count, dtype=mx.float32)[None, None, :, None]
    return mx.broadcast_to(positions, (batch, 2, count, 32))


def fill(cache: KVCache, count: int) -> None:
    """Write `count` numbered events as `extend` does."""
    cache.reserve(count)
    for layer in range(TINY.num_layers):
        new = numbered(cache.offset, count)
        cache.write(layer, new + layer, -new)
    cache.offset += count


def test_the_ring_grows_in_steps_up_to_its_limit() -> None:
    cache, seen = KVCache(LONG), []
    for _ in range(40):
        cache.reserve(64)
        cache.offset += 64
        seen.append(cache.capacity)
        assert min(cache.offset, 2048) <= cache.capacity <= min(cache.offset + 127, 2048)
    assert sorted(set(seen)) == list(range(128, 2049, 128))
    assert seen[1] == 128  # 128 events fit
    assert seen[2] == 256


def test_a_limit_between_two_steps_is_kept() -> None:
    cache = KVCache(MidiTransformerConfig(**{**vars(TINY), "context_length": 300}))
    cache.reserve(257)
    assert cache.capacity == 300


def test_one_large_reserve_is_enough() -> None:
    cache = KVCache(LONG)
    cache.reserve(1025)
    assert cache.capacity == 1152
    assert cache.keys[0].shape == cache.values[1].shape == (1, 2, 1152, 32)


def test_growing_keeps_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 8)
    cache = KVCache(TINY)
    fill(cache, 7)
    before = np.array(cache.keys[1][:, :, :7])
    cache.reserve(13)
    assert cache.capacity == 24
    np.testing.assert_array_equal(np.array(cache.keys[1][:, :, :7]), before)
    assert not np.array(cache.keys[1][:, :, 7:]).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=6))
def test_slots_hold_the_newest_events(counts: list[int]) -> None:
    cache, written = KVCache(TINY), 0
    for count in counts:
        fill(cache, count)
        written += count
    # fewer than 4 contexts in one go are never moved back, so positions may have moved by contexts
    moved = written - cache.offset
    assert moved % 32 == 0
    positions = np.array(cache.slot_positions())
    held = np.sort(positions[positions >= 0])
    np.testing.assert_array_equal(held, np.arange(max(0, cache.offset - 32), cache.offset))
    np.testing.assert_array_equal(positions % 32, np.arange(32))
    values = np.array(cache.values[1])[0, 0, :, 0]
    fresh = positions >= cache.offset - counts[-1]
    np.testing.assert_array_equal(-values[fresh], positions[fresh])


def test_an_empty_ring_holds_nothing() -> None:
    assert (np.array(KVCache(TINY).slot_positions()) < 0).all()


def test_writing_more_than_fits_keeps_the_newest() -> None:
    cache = KVCache(TINY)
    fill(cache, 75)
    held = np.array(cache.keys[0])[0, 1, :, 5]
    np.testing.assert_array_equal(np.sort(held), np.arange(43, 75))
    np.testing.assert_array_equal(held % 32, np.arange(32))


def test_the_next_place_follows_the_ring() -> None:
    cache = KVCache(TINY)
    for offset in (0, 5, 31, 32, 70):
        cache.offset = offset
        place = cache.next_place()
        assert place.offset.tolist() == [offset]
        assert place.slot.tolist() == [offset % 32]
        np.testing.assert_array_equal(np.array(place.mask), np.arange(32) <= offset)


def test_nbytes_counts_keys_and_values_of_all_layers() -> None:
    per_event = 2 * TINY.num_layers * TINY.hidden_dim
    assert KVCache(TINY).nbytes == 32 * per_event * 4
    assert KVCache(TINY, batch_size=2, dtype=mx.float16).nbytes == 2 * 32 * per_event * 2
    real = KVCache(MidiTransformerConfig(), dtype=mx.float16)
    real.reserve(2048)
    assert real.nbytes == 2 * 8 * 384 * 2048 * 2  # 25 MB


def test_moving_back_turns_keys_and_leaves_values() -> None:
    rng = np.random.default_rng(0)
    cache = KVCache(TINY)
    plain = mx.array(rng.normal(size=(1, 2, 32, 32)).astype(np.float32))
    places = [32 * 5 + slot for slot in range(32)]

    def keys_at(offset: int) -> mx.array:
        return mx.fast.rope(
            plain,
            32,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=mx.array(TINY.rope_periods),
        )

    cache.keys = [keys_at(places[0]) for _ in cache.keys]
    cache.values = [plain for _ in cache.values]
    cache.offset = 32 * 6
    cache._move_back(32 * 4)
    assert cache.offset == 64
    for keys, values in zip(cache.keys, cache.values, strict=True):
        # fp32 angles of position 160: measured 1.6e-5
        np.testing.assert_allclose(np.array(keys), np.array(keys_at(32)), atol=1e-4)
        np.testing.assert_array_equal(np.array(values), np.array(plain))


def steps_peak_bytes(model: EmotionMIDITransformer, cache: KVCache, hold: bool) -> list[int]:
    """Peak memory of each of 50 steps, above what lies there between steps."""
    cross = model.cross_keys_values(
        Conditions(mx.zeros((1, 64)), mx.zeros((1, 1), mx.int32), mx.zeros((1,), mx.int32))
    )
    mx.eval(cross, cache.keys, cache.values)
    step, peaks = mx.compile(model.step), []
    for _ in range(50):
        cache.reserve(1)
        place, keys, values = cache.next_place(), cache.keys, cache.values
        cache.keys, cache.values = [], []
        mx.eval(place)
        at_rest = mx.get_active_memory()
        mx.reset_peak_memory()
        logits, cache.keys, cache.values = step(
            mx.zeros((1, 1), mx.int32), place, keys, values, cross
        )
        if not hold:
            del keys, values
        mx.eval(logits, cache.keys, cache.values)
        cache.offset += 1
        peaks.append(mx.get_peak_memory() - at_rest)
    return peaks


def test_steps_write_in_place() -> None:
    model = EmotionMIDITransformer(LONG)
    model.initialise(0)
    mx.eval(model.parameters())
    cache = KVCache(LONG)
    cache.reserve(2048)
    layer_bytes = cache.keys[0].nbytes
    in_place = steps_peak_bytes(model, cache, hold=False)
    assert max(in_place) < layer_bytes / 4  # measured 0.12
    assert abs(np.median(in_place[25:]) - np.median(in_place[:25])) < layer_bytes / 100
    # the measurement sees a copy where there is one
    assert min(steps_peak_bytes(model, cache, hold=True)[1:]) > 2 * layer_bytes


def test_long_generation_needs_no_more_memory() -> None:
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    cache = KVCache(TINY)
    steps_peak_bytes(model, cache, hold=False)
    before = mx.get_active_memory()
    for _ in range(3):
        steps_peak_bytes(model, cache, hold=False)
    assert mx.get_active_memory() <= before + 64 * 1024  # the ring alone has 32 kB; 150 events


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=8))
def test_what_is_taken_back_is_hidden_until_it_is_written_again(
    turns: list[tuple[int, float]],
) -> None:
    cache = KVCache(TINY)
    # by number of the event: what the ring holds of it, and what may be seen
    held: list[int] = []
    shift = 0
    for count, share in turns:
        before = cache.offset
        fill(cache, count)
        shift += before + count - cache.offset
        held = [*held, *range(cache.offset + shift - count, cache.offset + shift)][-32:]
        taken = round(share * len(held))
        cache.rewind(taken)
        held = held[: len(held) - taken]
        positions = np.array(cache.slot_positions())
        np.testing.assert_array_equal(np.sort(positions[positions >= 0]) + shift, held)
        np.testing.assert_array_equal(positions % 32, np.arange(32))
        place = cache.next_place()
        seen = positions[np.array(place.mask) & (np.arange(32) != place.slot.item())]
        # the event to come takes the place of the one that is a context older
        next_position = cache.offset
        np.testing.assert_array_equal(
            np.sort(seen), [p for p in np.sort(positions) if p >= 0 and next_position - p < 32]
        )
        assert np.array(place.mask)[place.slot.item()]


def test_growing_goes_on_after_taking_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 8)
    cache = KVCache(TINY)
    fill(cache, 15)
    cache.rewind(10)
    assert (cache.capacity, cache.offset) == (16, 5)
    fill(cache, 13)
    assert cache.capacity == 24
    values = np.array(cache.values[0])[0, 0, :18, 0]
    np.testing.assert_array_equal(-values, np.arange(18))


def test_no_more_than_is_held_can_be_taken_back() -> None:
    cache = KVCache(TINY)
    fill(cache, 20)
    for count in (-1, 21):
        with pytest.raises(ValueError, match=f"take back {count} of 20 events"):
            cache.rewind(count)
    fill(cache, 30)
    cache.rewind(5)
    with pytest.raises(ValueError, match="take back 28 of 27 events"):
        cache.rewind(28)
    cache.rewind(27)
    assert (np.array(cache.slot_positions()) < 0).all()
    assert np.array(cache.next_place().mask).sum() == 1
