"""Drawing the next event inside the model's graph: guidance, penalty, mask, top-k, top-p, min-p.

One sort serves all three cuts, and the randomness is Gumbel noise drawn ahead on the host, so a
draw is a handful of kernels and the same seed gives the same music in every framework.
"""

from __future__ import annotations

import mlx.core as mx

from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import VOCABULARY_SIZE
from kmidi_mlx.music.knobs import Knobs

# below every score of a working model
LOWEST = -1e30


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
        noise: `(388,)` from `kmidi_mlx.music.knobs.gumbel_noise`; zeros: greedy.
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
