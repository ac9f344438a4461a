"""Interpolated n-grams over events: what can be predicted without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.evaluation.spans import Span, held_out_pieces, legal_events
from kmidi_mlx.evaluation.tally import OnProgress, Tally
from kmidi_mlx.music.events import INPUT_SIZE, START_TOKEN, VOCABULARY_SIZE

__all__ = ["BASELINES", "NGram", "learn", "score_ngram"]

#: Baselines by name and order.
BASELINES = {"uniform": 0, "unigram": 1, "trigram": 3}

# One train song in so many is not counted but tunes.
_TUNING_EVERY = 20
_STRENGTHS = tuple(2.0**power for power in range(8))
_Ids = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Level:
    """Counts of all k-grams: contexts as sorted numbers, and what was seen after each.

    Attributes:
        context: (m,) the k - 1 events before, as one number.
        first: (m + 1,) where the entries of each context begin in the next two.
        entry: (entries,) context · 388 + event, rising.
        count: (entries,) how often.
    """

    context: _Ids
    first: _Ids
    entry: _Ids
    count: _Ids

    def look_up(self, context: _Ids) -> tuple[_Ids, _Ids]:
        """Return (n,) the first entry of each context and how many it has, 0 if it is unseen."""
        place = np.minimum(np.searchsorted(self.context, context), len(self.context) - 1)
        seen = self.context[place] == context
        return self.first[place], np.where(seen, self.first[place + 1] - self.first[place], 0)

    def blend(self, lower: _Floats, context: _Ids, strength: float) -> _Floats:
        """Mix the shorter contexts' probabilities (n, 388) with what followed `context` (n,)."""
        first, kinds = self.look_up(context)
        row = np.repeat(np.arange(len(context)), kinds)
        taken = first[row] + np.arange(len(row)) - (np.cumsum(kinds) - kinds)[row]
        total = np.bincount(row, self.count[taken], len(context))
        divisor = total + strength * kinds
        # A context that was never seen says nothing: all weight goes to the shorter one.
        weight = np.where(kinds > 0, strength * kinds / np.maximum(divisor, 1.0), 1.0)
        mixed: _Floats = lower * weight[:, None]
        mixed[row, self.entry[taken] % VOCABULARY_SIZE] += self.count[taken] / divisor[row]
        return mixed

    def of_targets(self, context: _Ids, targets: _Ids) -> tuple[_Ids, _Floats, _Ids]:
        """Return (n,) how often each target followed its context, what did in all, and kinds."""
        first, kinds = self.look_up(context)
        sums = np.append(0, np.cumsum(self.count))
        total = (sums[first + kinds] - sums[first]).astype(np.float64)
        wanted = context * VOCABULARY_SIZE + targets
        place = np.minimum(np.searchsorted(self.entry, wanted), len(self.entry) - 1)
        return np.where(self.entry[place] == wanted, self.count[place], 0), total, kinds


class NGram:
    """An n-gram with Witten-Bell interpolation down to the uniform distribution.

    p(e | c) = (count(c e) + s kinds(c) p(e | shorter c)) / (count(c) + s kinds(c)), where kinds(c)
    is the number of different events seen after c and the strength s is 1 unless tuned (Witten &
    Bell, "The zero-frequency problem", 1991; interpolated as in Chen & Goodman, "An empirical study
    of smoothing techniques for language modeling", 1999, section 2.7).

    Args:
        order: n, up to 6; 1 looks at no event before, 0 is uniform and learns nothing.
        pieces: event ids (length,) of each piece to count.
    """

    def __init__(self, order: int, pieces: Iterable[NDArray[np.integer]]) -> None:
        self.order = order
        self._levels: list[_Level] = []
        self.strengths: list[float] = []
        if not order:
            return
        stream, at = _stream(pieces, order - 1)
        for length in range(order if len(at) else 0):
            key = _joined(stream, at, length) * VOCABULARY_SIZE + stream[at]
            entry, count = np.unique(key, return_counts=True)
            context, first = np.unique(entry // VOCABULARY_SIZE, return_index=True)
            self._levels.append(_Level(context, np.append(first, len(entry)), entry, count))
            self.strengths.append(1.0)

    def tune(self, pieces: Iterable[NDArray[np.integer]]) -> None:
        """Choose the strengths that predict pieces best, from the shortest context up.

        Songs repeat themselves, so counts promise more than they hold for the next song.

        Args:
            pieces: event ids (length,) of pieces whose songs were not counted.
        """
        if not self._levels:
            return
        stream, at = _stream(pieces, self.order - 1)
        chance = np.full(len(at), 1.0 / VOCABULARY_SIZE)
        for length, level in enumerate(self._levels):
            count, total, kinds = level.of_targets(_joined(stream, at, length), stream[at])
            choices = [
                np.where(
                    kinds > 0,
                    (count + s * kinds * chance) / np.maximum(total + s * kinds, 1),
                    chance,
                )
                for s in _STRENGTHS
            ]
            best = int(np.argmax([np.log(choice).sum() for choice in choices]))
            self.strengths[length], chance = _STRENGTHS[best], choices[best]

    def probabilities(
        self, events: NDArray[np.integer], first: int, stop: int
    ) -> NDArray[np.float64]:
        """Return the probabilities of every event at places of a piece.

        Args:
            events: (n,) the piece's ids from its start.
            first, stop: places, 0 <= first <= stop <= n.

        Returns:
            float64 (stop - first, 388); rows sum to 1.
        """
        reach = max(0, self.order - 1)
        low = max(0, first - reach)
        stream = np.full(stop - low + reach, START_TOKEN, np.int64)
        stream[reach:] = events[low:stop]
        at = np.arange(first, stop) - low + reach
        mixed = np.full((stop - first, VOCABULARY_SIZE), 1.0 / VOCABULARY_SIZE)
        for length, level in enumerate(self._levels):
            mixed = level.blend(mixed, _joined(stream, at, length), self.strengths[length])
        return mixed


def learn(reader: ShardReader, order: int) -> NGram:
    """Count the train side of a data set; every twentieth song only tunes.

    Args:
        reader: the data set; exact duplicates are left out. A single song is counted, not tuned.
        order: see `NGram`.

    Raises:
        KmidiError: if the side is empty.
    """
    pieces = held_out_pieces(reader, "train")
    songs = np.unique(reader.pieces.song[pieces], return_inverse=True)[1]
    tuning = (songs % _TUNING_EVERY == 0) & (songs.max() > 0)
    ngram = NGram(order, map(reader.tokens, pieces[~tuning].tolist()))
    ngram.tune(map(reader.tokens, pieces[tuning].tolist()))
    return ngram


def score_ngram(
    ngram: NGram,
    reader: ShardReader,
    spans: Sequence[Span],
    on_progress: OnProgress | None = None,
) -> Tally:
    """Predict the events that count in `spans`; unlike a window, an n-gram always sees its past.

    Args:
        ngram: the model.
        reader: the data set.
        spans: what to predict.
        on_progress: called with the number of events after each span.
    """
    tally = Tally(int(reader.pieces.song.max()) + 1)
    for span in spans:
        events = reader.tokens(span.piece)
        targets = events[span.first : span.stop]
        chance = ngram.probabilities(events, span.first, span.stop)
        legal = legal_events(events, span.first, span.stop)
        tally.add(
            int(reader.pieces.song[span.piece]),
            targets,
            -np.log(chance[np.arange(len(targets)), targets]),
            chance.argmax(axis=1) == targets,
            np.where(legal, 0.0, chance).sum(axis=1),
        )
        if on_progress:
            on_progress(len(span))
    return tally


def _stream(pieces: Iterable[NDArray[np.integer]], reach: int) -> tuple[_Ids, _Ids]:
    """Return pieces as one stream, `reach` start tokens before each, and where the events are."""
    start = np.full(reach, START_TOKEN, np.int64)
    stream = np.concatenate([start, *(part for piece in pieces for part in (start, piece))])
    return stream, np.flatnonzero(stream != START_TOKEN)


def _joined(stream: _Ids, at: _Ids, length: int) -> _Ids:
    """Return the `length` ids before each place as one number (n,)."""
    number = np.zeros(len(at), np.int64)
    for back in range(length, 0, -1):
        number = number * INPUT_SIZE + stream[at - back]
    return number
