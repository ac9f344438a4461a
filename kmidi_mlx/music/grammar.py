"""The law of playable music as an allowed-events mask, written once for every framework.

A composer that only draws allowed events can write nothing but valid music, whatever its weights:
no note-off of a silent pitch, no note-on of a sounding one, no more notes at once and no longer
notes or rests than asked for, velocities and time shifts in the encoder's canonical form. From
every reachable state at least one event is allowed.

The functions are pure and use only operators, slices, `xp.where` and `.max()`, so `xp` may be
`numpy`, `mlx.core` (inside a compiled graph) or `torch`. The state is one array with a row for
each thing to remember; what an event does to each row is looked up in a table, so that an update
is one gather and one fusable expression.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music.events import (
    INPUT_SIZE,
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VELOCITY_BINS,
    VOCABULARY_SIZE,
)

AGE, SOUNDING, VELOCITY_BIN, PHASE, REST, RECENT = range(6)
ROWS = 6
AFTER_VELOCITY, AFTER_SHORT_SHIFT = 1, 2
# a pitch struck this many note-ons ago counts half in the repetition penalty
RECENCY_HALF_LIFE = 16
_RECENCY_DECAY = 0.5 ** (1 / RECENCY_HALF_LIFE)


class Tables(NamedTuple):
    """Constants of the law.

    Attributes:
        ids, shift, velocity: per event `(1, 388)`: id, shift in steps, velocity bin (-1: none).
        effects: `(390, 6, 6)`, what an event (input-only ids too) does to each row of the state:
            keep, add (steps that only pass where `state >= floor`), the two ids that are hit
            (-1: none), and what becomes of a hit entry: `entry * carry + put`.
        floor: `(6, 1)`, see `effects`.
    """

    ids: Any
    shift: Any
    velocity: Any
    effects: Any
    floor: Any


class Limits(NamedTuple):
    """Limits as scalars or scalar arrays of the framework in use."""

    max_polyphony: Any
    max_note_steps: Any
    max_rest_steps: Any
    lowest_pitch: Any
    highest_pitch: Any


def tables() -> Tables:
    """Make the constants as numpy arrays."""
    ids = np.arange(VOCABULARY_SIZE, dtype=np.int32)[None]
    is_shift = (ids >= TIME_SHIFT) & (ids < VELOCITY)
    floor = np.full((ROWS, 1), -np.inf, dtype=np.float32)
    floor[AGE] = 0
    return Tables(
        ids=ids,
        shift=np.where(is_shift, ids - (TIME_SHIFT - 1), 0).astype(np.int32),
        velocity=np.where(ids >= VELOCITY, ids - VELOCITY, -1).astype(np.int32),
        effects=_effects(),
        floor=floor,
    )


def _effects() -> NDArray[np.float32]:
    #      keep, add, hit, hit, carry, put
    no_effect = (1, 0, -1, -1, 1, 0)
    effects = np.tile(np.array(no_effect, dtype=np.float32), (INPUT_SIZE, ROWS, 1))
    effects[:VOCABULARY_SIZE, PHASE] = (0, 0, -1, -1, 1, 0)
    for pitch in range(NOTE_OFF):
        on, off = pitch, pitch + NOTE_OFF
        effects[on, AGE] = (1, 0, on, off, 0, 0)
        effects[off, AGE] = (1, 0, on, off, 0, -1)
        effects[on, SOUNDING] = (1, 1, -1, -1, 1, 0)
        effects[off, SOUNDING] = (1, -1, -1, -1, 1, 0)
        effects[[on, off], REST] = (0, 0, -1, -1, 1, 0)
        effects[on, RECENT] = (_RECENCY_DECAY, 0, on, -1, 1, 1)
    for steps in range(1, MAX_SHIFT_STEPS + 1):
        event = TIME_SHIFT + steps - 1
        effects[event, [AGE, REST]] = (1, steps, -1, -1, 1, 0)
        phase = AFTER_SHORT_SHIFT if steps < MAX_SHIFT_STEPS else 0
        effects[event, PHASE] = (0, phase, -1, -1, 1, 0)
    for velocity_bin in range(VELOCITY_BINS):
        event = VELOCITY + velocity_bin
        effects[event, VELOCITY_BIN] = (0, velocity_bin, -1, -1, 1, 0)
        effects[event, PHASE] = (0, AFTER_VELOCITY, -1, -1, 1, 0)
    return effects


def initial_state() -> NDArray[np.float32]:
    """State before the first event, silence: float32 `(6, 388)`.

    Row AGE holds the steps for which the pitch of a note-on or note-off id has sounded, -1 for a
    silent pitch or none; row RECENT a decaying count of note-ons per note-on id. The others repeat
    one number: SOUNDING notes, VELOCITY bin in force (-1: none yet), PHASE, REST in steps since
    the last note began or ended. Whole numbers below 2^24 are exact in float32.
    """
    state = np.zeros((ROWS, VOCABULARY_SIZE), dtype=np.float32)
    state[[AGE, VELOCITY_BIN]] = -1
    return state


def limits_of(config: SamplingConfig) -> Limits:
    """Limits in steps and pitches as plain integers.

    Polyphony never exceeds the number of pitches in range: a velocity could otherwise be followed
    by no note-on.
    """
    return Limits(
        max_polyphony=min(config.max_polyphony, config.highest_pitch - config.lowest_pitch + 1),
        max_note_steps=max(1, round(config.max_note_seconds * STEPS_PER_SECOND)),
        max_rest_steps=max(1, round(config.max_rest_seconds * STEPS_PER_SECOND)),
        lowest_pitch=config.lowest_pitch,
        highest_pitch=config.highest_pitch,
    )


def advance(state: Any, event: Any, table: Tables, xp: Any) -> Any:
    """State after `event`, a `(1,)` integer array; input-only ids change nothing.

    A graph that is exported to ONNX needs it as int64: there nothing else may be an index.
    """
    effect = table.effects[event]
    keep, add, hit, partner, carry, put = (effect[0, :, i : i + 1] for i in range(6))
    changed = state * keep + add * (state >= table.floor)
    is_hit = (table.ids == hit) | (table.ids == partner)
    return xp.where(is_hit, changed * carry + put, changed)


def allowed(state: Any, limits: Limits, table: Tables, xp: Any) -> Any:
    """Boolean mask `(1, 388)` of the events that may come next."""
    age, sounding, bin_now, phase, rest = (state[row : row + 1] for row in range(RECENT))
    can_strike = sounding < limits.max_polyphony
    shift_room = xp.where(
        sounding == 0, limits.max_rest_steps - rest, limits.max_note_steps - age.max()
    )
    note_on = (
        (table.ids < NOTE_OFF)
        & (age < 0)
        & can_strike
        & (bin_now >= 0)
        & (table.ids >= limits.lowest_pitch)
        & (table.ids <= limits.highest_pitch)
    )
    elsewhere = (
        ((table.ids >= NOTE_OFF) & (age > 0))
        | ((table.shift > 0) & (table.shift <= shift_room) & (phase != AFTER_SHORT_SHIFT))
        | ((table.velocity >= 0) & can_strike & (table.velocity != bin_now))
    )
    return note_on | (elsewhere & (phase != AFTER_VELOCITY))
