"""Drawing the next event inside the model's graph: guidance, penalty, mask, top-k, top-p, min-p.

One sort serves all three cuts, and the randomness is Gumbel noise drawn ahead on the host, so a
draw is a handful of kernels and the same seed gives the same music in every framework.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import VOCABULARY_SIZE

# below every score of a working model
LOWEST = -1e30


class Knobs(NamedTuple):
    """Sampling settings as one float32 array, so that changing one recompiles nothing."""

    inverse_temperature: mx.array
    first_rank: mx.array  # 388 - top_k
    top_p: mx.array
    min_p: mx.array
    log_penalty: mx.array
    guidance_scale: mx.array
    limits: grammar.Limits


def pack(config: SamplingConfig) -> mx.array:
    """Put the settings into an array `(11,)` for `unpack`."""
    greedy = config.temperature == 0.0
    values = (
        1.0 if greedy else 1.0 / config.temperature,
        VOCABULARY_SIZE - (1 if greedy else config.top_k or VOCABULARY_SIZE),
        config.top_p,
        config.min_p,
        float(np.log(config.repetition_penalty)),
        config.guidance_scale,
        *grammar.limits_of(config),
    )
    return mx.array(values, dtype=mx.float32)


def unpack(packed: mx.array) -> Knobs:
    """Name the entries of a packed array; each is a `(1,)` view."""
    parts = [packed[i : i + 1] for i in range(packed.shape[0])]
    limits = grammar.Limits(*parts[-len(grammar.Limits._fields) :])
    return Knobs._make([*parts[: -len(limits)], limits])


def gumbel_noise(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Noise `(count, 388)`: adding it to logits and taking the largest draws from their softmax."""
    return rng.gumbel(size=(count, VOCABULARY_SIZE)).astype(np.float32)


def draw(
    logits: mx.array,
    noise: mx.array,
    state: mx.array,
    knobs: Knobs,
    table: grammar.Tables,
) -> mx.array:
    """Draw one allowed event, whatever the logits: what is no number is the unlikeliest.

    Args:
        logits: `(rows, 388)`; two rows are the conditional and the unconditional model.
        noise: `(388,)` from `gumbel_noise`.
        state: grammar state after all earlier events.
        knobs: settings.
        table: grammar constants.

    Returns:
        `(1,)` int32 event id.
    """
    scores = logits[:1].astype(mx.float32)
    if logits.shape[0] == 2:
        plain = logits[1:].astype(mx.float32)
        scores = plain + knobs.guidance_scale * (scores - plain)
    recent = state[grammar.RECENT : grammar.RECENT + 1]
    scores = (scores - knobs.log_penalty * recent) * knobs.inverse_temperature
    # above minus infinity, so that whatever is allowed beats all that is not
    scores = mx.where(mx.isnan(scores), LOWEST, mx.maximum(scores, LOWEST))
    scores = mx.where(grammar.allowed(state, knobs.limits, table, mx), scores, -mx.inf)
    ranked = mx.sort(scores)
    share = mx.softmax(ranked)
    above = 1.0 - mx.cumsum(share, axis=-1)
    kept = (
        (table.ids >= knobs.first_rank)
        & (above < knobs.top_p)
        & (share >= knobs.min_p * share[:, -1:])
    )
    # rounding in the running sum must never drop the likeliest event
    kept = kept | (table.ids == VOCABULARY_SIZE - 1)
    cut = mx.min(mx.where(kept, ranked, mx.inf))
    chosen = mx.argmax(mx.where(scores >= cut, scores + noise, -mx.inf), axis=-1)
    return chosen.astype(mx.int32)
