"""Pieces that are written side by side are those that are written one by one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation.choir import Request, write_pieces
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.events import decode, first_violation

TINY = MidiTransformerConfig(
    hidden_dim=64, num_layers=2, num_heads=2, ffn_dim=96, context_length=32,
    cross_attention_layers=(0,),
)  # fmt: skip
SAMPLINGS = {
    "lively": SamplingConfig(temperature=1.0, top_k=0, top_p=1.0),
    "guided": SamplingConfig(temperature=1.0, guidance_scale=2.0),
    "greedy": SamplingConfig(temperature=0.0),
}

emotions = st.builds(Emotion.of, st.floats(-1, 1), st.floats(-1, 1))
requests = st.lists(
    st.builds(
        Request,
        seconds=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
        seed=st.integers(0, 5),
        emotion=st.none() | emotions,
        changes=st.lists(st.tuples(st.floats(0, 4), emotions), max_size=2).map(tuple),
        chord=st.integers(0, 109),
        key=st.integers(0, 24),
    ),
    max_size=5,
)


@cache
def tiny() -> EmotionMIDITransformer:
    model = EmotionMIDITransformer(TINY)
    model.initialise(3)
    return model


@settings(max_examples=12, deadline=None)
@given(requests, st.integers(1, 4), st.sampled_from(sorted(SAMPLINGS)))
def test_each_piece_is_as_if_it_were_alone(wanted: list[Request], rows: int, sampling: str) -> None:
    told: dict[int, np.ndarray] = {}
    found = write_pieces(tiny(), SAMPLINGS[sampling], wanted, rows=rows, on_piece=told.__setitem__)
    assert len(found) == len(told) == len(wanted)
    for number, (piece, request) in enumerate(zip(found, wanted, strict=True)):
        alone = generate(
            tiny(), SAMPLINGS[sampling], request.seconds, seed=request.seed,
            emotion=request.emotion, changes=request.changes, chord=request.chord,
            key=request.key,
        )  # fmt: skip
        np.testing.assert_array_equal(piece, alone)
        np.testing.assert_array_equal(told[number], piece)
        assert first_violation(piece) is None


def test_pieces_beyond_the_context_go_on() -> None:
    """Rows of very different length: some end early and leave the batch."""
    wanted = [Request(seconds, seed) for seed, seconds in enumerate((3.0, 40.0, 2.0, 60.0, 1.0))]
    found = write_pieces(tiny(), SAMPLINGS["lively"], wanted, rows=5)
    assert max(map(len, found)) > 8 * TINY.context_length
    for piece, request in zip(found, wanted, strict=True):
        alone = generate(tiny(), SAMPLINGS["lively"], request.seconds, seed=request.seed)
        np.testing.assert_array_equal(piece, alone)
        assert decode(piece).duration_seconds == pytest.approx(request.seconds, abs=2.0)
