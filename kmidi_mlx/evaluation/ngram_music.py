"""Music written by an n-gram: what keeping the statistics of three events alone sounds like."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.evaluation.ngram import NGram
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, decode, encode

__all__ = ["write_with_ngram"]


def write_with_ngram(
    ngram: NGram, sampling: SamplingConfig, seconds: float, seed: int
) -> NDArray[np.uint16]:
    """Draw events one by one, each allowed by the grammar, and end all notes after `seconds`.

    Args:
        ngram: the model; it is drawn from as it is, at temperature 1.
        sampling: whose limits of the grammar hold.
        seconds: length, > 0.
        seed: of the randomness.

    Returns:
        (n,) event ids, valid music.
    """
    rng, tables, limits = np.random.default_rng(seed), grammar.tables(), grammar.limits_of(sampling)
    state, end, steps = grammar.initial_state(), round(seconds * STEPS_PER_SECOND), 0
    events: list[int] = []
    reach = max(0, ngram.order - 1)
    while True:
        # only the events within reach count; the last place is the one that is asked for
        recent = np.array([*events[max(0, len(events) - reach) :], 0])
        chance = ngram.probabilities(recent, len(recent) - 1, len(recent))[0]
        chance = np.cumsum(chance * grammar.allowed(state, limits, tables, np)[0])
        event = int(np.searchsorted(chance, rng.random() * chance[-1], side="right"))
        passed = event - TIME_SHIFT + 1 if TIME_SHIFT <= event < VELOCITY else 0
        if steps + passed >= end:
            rest = end - steps
            return encode(decode([*events, *([TIME_SHIFT + rest - 1] if rest else [])]))
        steps += passed
        events.append(event)
        state = grammar.advance(state, np.array([event]), tables, np)
