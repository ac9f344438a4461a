"""How well a MIDI generator predicts held-out music, with its conditions and without any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.batches import Batch, collate
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.windows import WindowCutter
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.spans import Span, legal_events
from kmidi_mlx.evaluation.tally import OnProgress, Tally
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music.events import VOCABULARY_SIZE

__all__ = ["CONDITIONED", "UNCONDITIONED", "score_model", "span_batches"]

#: Names of the two tallies of `score_model`.
CONDITIONED, UNCONDITIONED = "with conditions", "without conditions"


def span_batches(
    reader: ShardReader,
    spans: Sequence[Span],
    context: int,
    batch_size: int,
    max_chords: int,
) -> Iterator[tuple[Sequence[Span], Batch, NDArray[np.bool_]]]:
    """Yield what a model reads and is to predict, in batches of one shape.

    Conditions are those of training: the mood curve averaged over the window's time, the key in
    force most, the chord in force before each event.

    Args:
        reader: the data set.
        spans: windows of `sliding_spans`.
        context: events in a window, T.
        batch_size: windows in a batch, B; the last batch is filled up with padding.
        max_chords: chord slots, C.

    Yields:
        The spans of the batch; the batch, with weights 1 for the events that count; bool
        (B, T, 388), what the grammar allows where events count, False elsewhere.
    """
    cutter = WindowCutter(reader, context)
    for start in range(0, len(spans), batch_size):
        group = spans[start : start + batch_size]
        windows = [cutter.cut(span.piece, span.position) for span in group]
        given = [True] * len(windows)
        batch = collate(windows, (batch_size, context, max_chords), given, given)
        batch.weights[:] = 0.0
        legal = np.zeros((batch_size, context, VOCABULARY_SIZE), bool)
        for row, span in enumerate(group):
            events = reader.tokens(span.piece)
            batch.weights[row, _counted(span)] = 1.0
            legal[row, _counted(span)] = legal_events(events, span.first, span.stop)
        yield group, batch, legal


def score_model(
    model: EmotionMIDITransformer,
    reader: ShardReader,
    spans: Sequence[Span],
    *,
    context: int,
    batch_size: int = 8,
    max_chords: int = 48,
    on_progress: OnProgress | None = None,
) -> dict[str, Tally]:
    """Predict the events that count in `spans`, each given its past in the window.

    Args:
        model: the generator.
        reader: the data set.
        spans: windows of `sliding_spans` of the same `context`.
        context: events in a window, at most the model's context length.
        batch_size: windows that go through the model at once.
        max_chords: chord slots of a window, as in training (`data.max_chords`).
        on_progress: called with the number of events after each batch.

    Returns:
        Tallies of the same events: `CONDITIONED` on emotion, chords and key of the piece, and
        `UNCONDITIONED`, on none, as when conditions were dropped in training.

    Raises:
        KmidiError: if the model's context is shorter, or it gives no numbers.
    """
    if context > model.config.context_length:
        raise KmidiError(
            f"the context of {context} events is longer than the model's, "
            f"{model.config.context_length}; give a shorter one."
        )
    songs = int(reader.pieces.song.max()) + 1
    tallies = {name: Tally(songs) for name in (CONDITIONED, UNCONDITIONED)}

    def measure(inputs, targets, legal, emotion, chords, keys, chord_index):  # type: ignore[no-untyped-def]
        logits = model(inputs, Conditions(emotion, chords, keys), chord_index).astype(mx.float32)
        log_chance = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        nats = -mx.take_along_axis(log_chance, targets[..., None], axis=-1)[..., 0]
        illegal = mx.sum(mx.where(legal, 0.0, mx.exp(log_chance)), axis=-1)
        return nats, mx.argmax(logits, axis=-1) == targets, illegal

    compiled = mx.compile(measure, inputs=[model.state])
    for group, batch, legal in span_batches(reader, spans, context, batch_size, max_chords):
        shared = [mx.array(batch.inputs), mx.array(batch.targets), mx.array(legal)]
        given = [mx.array(a) for a in (batch.emotion, batch.chords, batch.keys, batch.chord_index)]
        for name, tally in tallies.items():
            conditions = given if name == CONDITIONED else [mx.zeros_like(a) for a in given]
            found = compiled(*shared, *conditions)
            mx.eval(found)
            nats, correct, illegal = (np.array(array) for array in found)
            for row, span in enumerate(group):
                at = _counted(span)
                if not np.isfinite(nats[row, at]).all():
                    raise KmidiError("the model gives no finite probabilities; it is broken.")
                song = int(reader.pieces.song[span.piece])
                tally.add(
                    song, batch.targets[row, at], nats[row, at], correct[row, at], illegal[row, at]
                )
        if on_progress:
            on_progress(sum(map(len, group)))
    return tallies


def _counted(span: Span) -> slice:
    """Where the events that count stand in the window."""
    return slice(span.first - span.position, span.stop - span.position)
