"""What a draw of the next event needs from the host: settings as one array, and noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import VOCABULARY_SIZE


class Knobs(NamedTuple):
    """Sampling settings, each `(1,)`, cut from one array: changing one recompiles nothing."""

    inverse_temperature: Any
    first_rank: Any  # 388 - top_k
    top_p: Any
    min_p: Any
    log_penalty: Any
    guidance_scale: Any
    limits: grammar.Limits


def pack(config: SamplingConfig) -> NDArray[np.float32]:
    """Put the settings into a float32 array `(11,)` for `unpack`."""
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
    return np.array(values, dtype=np.float32)


def unpack(packed: Any) -> Knobs:
    """Name the entries of a packed array of any framework; each is a `(1,)` view."""
    parts = [packed[i : i + 1] for i in range(packed.shape[0])]
    limits = grammar.Limits(*parts[-len(grammar.Limits._fields) :])
    return Knobs._make([*parts[: -len(limits)], limits])


def gumbel_noise(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Noise `(count, 388)`: adding it to logits and taking the largest draws from their softmax."""
    return rng.gumbel(size=(count, VOCABULARY_SIZE)).astype(np.float32)
