from __future__ import annotations

import math
from dataclasses import fields

import mlx.core as mx
import numpy as np
import pytest

from kmidi_mlx.config import MidiDataConfig
from kmidi_mlx.data.batches import Batch, MidiBatches
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.windows import WindowCutter
from kmidi_mlx.emotion import Emotion, encode
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.likelihood import (
    CONDITIONED,
    UNCONDITIONED,
    score_model,
    span_batches,
)
from kmidi_mlx.evaluation.spans import held_out_pieces, legal_events, sliding_spans
from kmidi_mlx.evaluation.tally import Tally
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music.events import START_TOKEN

CONTEXT, STRIDE = 24, 10


def slow_tally(
    model: EmotionMIDITransformer, reader: ShardReader, pieces: list[int], conditioned: bool
) -> Tally:
    """Event by event: cut the history that the description promises, run it, look at the end."""
    tally = Tally(int(reader.pieces.song.max()) + 1)
    cutter = WindowCutter(reader, CONTEXT)
    for piece in pieces:
        events = reader.tokens(piece)
        for j in range(len(events)):
            begin = 0 if j < CONTEXT else ((j - CONTEXT) // STRIDE + 1) * STRIDE
            history = [START_TOKEN, *events] if begin == 0 else events[begin - 1 :]
            history = np.array(history[: j - begin + 1], np.int32)
            window = cutter.cut(piece, begin)
            # a window within a piece holds the event before its first target too
            chords = window.chords[int(begin > 0) :][: len(history)].astype(np.int32)
            emotion, key = encode(Emotion.of(window.valence, window.arousal)), window.key
            if not conditioned:
                emotion, chords, key = np.zeros_like(emotion), np.zeros_like(chords), 0
            # one slot for each event: the slot of an event is its place
            logits = model(
                mx.array(history[None]),
                Conditions(mx.array(emotion[None]), mx.array(chords[None]), mx.array([key])),
                mx.arange(len(history))[None],
            )
            chance = np.array(mx.softmax(logits[0, -1]), np.float64)
            legal = legal_events(events, j, j + 1)[0]
            tally.add(
                int(reader.pieces.song[piece]),
                events[j : j + 1],
                -np.log(chance[events[j]])[None],
                np.array([chance.argmax() == events[j]]),
                chance[~legal].sum()[None],
            )
    return tally


def test_windows_equal_recomputing_every_event(
    model: EmotionMIDITransformer, music: ShardReader
) -> None:
    pieces = held_out_pieces(music, "val")[:3]
    spans = sliding_spans(music, pieces, CONTEXT, STRIDE)
    fast = score_model(model, music, spans, context=CONTEXT, batch_size=3)
    for name, conditioned in ((CONDITIONED, True), (UNCONDITIONED, False)):
        slow = slow_tally(model, music, pieces.tolist(), conditioned).score()
        score = fast[name].score()
        assert score.events == slow.events == int(music.pieces.length[pieces].sum())
        assert score.nats_per_event == pytest.approx(slow.nats_per_event, rel=1e-5)
        assert score.nats_per_note == pytest.approx(slow.nats_per_note, rel=1e-5)
        assert score.standard_error == pytest.approx(slow.standard_error, rel=1e-3)
        assert score.illegal_mass == pytest.approx(slow.illegal_mass, rel=1e-4)
        assert score.accuracy == slow.accuracy
    # the proof means something only where history and conditions change the result
    assert fast[CONDITIONED].score().nats_per_event != pytest.approx(
        fast[UNCONDITIONED].score().nats_per_event, rel=2e-4
    )
    other = score_model(model, music, sliding_spans(music, pieces, 8, 8), context=8)
    assert other[CONDITIONED].score().nats_per_event != pytest.approx(
        fast[CONDITIONED].score().nats_per_event, rel=1e-4
    )


def test_a_uniform_model_gives_ln_388(uniform: EmotionMIDITransformer, music: ShardReader) -> None:
    spans = sliding_spans(music, held_out_pieces(music, "val"), 32, 16)
    seen: list[int] = []
    for tally in score_model(uniform, music, spans, context=32, on_progress=seen.append).values():
        score = tally.score()
        assert score.nats_per_event == pytest.approx(math.log(388), rel=1e-6)
        assert score.perplexity == pytest.approx(388, rel=1e-5)
        assert score.standard_error == pytest.approx(0, abs=1e-6)
        assert 0.3 < score.illegal_mass < 0.7
    assert sum(seen) == score.events


def test_the_batch_size_changes_nothing(model: EmotionMIDITransformer, music: ShardReader) -> None:
    spans = sliding_spans(music, held_out_pieces(music, "val"), 16, 8, limit=100)
    one, many = (
        score_model(model, music, spans, context=16, batch_size=size)[CONDITIONED].score()
        for size in (1, 7)
    )
    assert one.nats_per_event == pytest.approx(many.nats_per_event, rel=1e-5)
    assert one.accuracy == many.accuracy


def rows_of(batch: Batch) -> list[tuple[bytes, ...]]:
    kept = batch.weights.any(axis=1)
    arrays = [getattr(batch, item.name)[kept] for item in fields(batch)]
    return [tuple(array[row].tobytes() for array in arrays) for row in range(int(kept.sum()))]


def test_what_the_model_reads_is_what_it_read_in_training(music: ShardReader) -> None:
    config = MidiDataConfig(sequence_length=16, max_chords=3)
    trained = MidiBatches(music, "val", config, batch_size=5, seed=0, augment=False)
    expected = [row for k in range(trained.steps_per_epoch()) for row in rows_of(trained.batch(k))]
    spans = sliding_spans(music, held_out_pieces(music, "val"), 16, 16)
    found = [row for _, batch, _ in span_batches(music, spans, 16, 5, 3) for row in rows_of(batch)]
    assert len(found) > 10
    assert sorted(found) == sorted(expected)


def test_only_events_that_count_have_weight(music: ShardReader) -> None:
    spans = sliding_spans(music, held_out_pieces(music, "val"), 16, 5)
    for group, batch, legal in span_batches(music, spans, 16, 4, 48):
        assert batch.weights.sum() == sum(map(len, group))
        assert (legal.any(axis=2) == (batch.weights > 0)).all()
        assert np.take_along_axis(legal, batch.targets[..., None], 2)[..., 0].sum() == (
            batch.weights.sum()
        )


def test_a_longer_context_than_the_model_has_is_refused(
    model: EmotionMIDITransformer, music: ShardReader
) -> None:
    spans = sliding_spans(music, held_out_pieces(music, "val"), 33, 8)
    with pytest.raises(KmidiError, match="context of 33 events is longer than the model's, 32"):
        score_model(model, music, spans, context=33)


def test_a_broken_model_is_named(model: EmotionMIDITransformer, music: ShardReader) -> None:
    model.final_norm.weight = model.final_norm.weight * float("nan")
    spans = sliding_spans(music, held_out_pieces(music, "val"), 16, 16, limit=10)
    with pytest.raises(KmidiError, match="broken"):
        score_model(model, music, spans, context=16)
