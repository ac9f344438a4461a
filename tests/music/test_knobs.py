from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import VOCABULARY_SIZE
from kmidi_mlx.music.knobs import gumbel_noise, pack, unpack

configs = st.builds(
    SamplingConfig,
    temperature=st.just(0.0) | st.floats(0.2, 3.0),
    top_k=st.just(0) | st.integers(1, 60),
    top_p=st.just(1.0) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    repetition_penalty=st.just(1.0) | st.floats(1.0, 4.0),
    guidance_scale=st.floats(0.0, 5.0),
    max_polyphony=st.integers(1, 6),
)


@given(configs)
def test_packing_keeps_every_setting(config: SamplingConfig) -> None:
    packed = pack(config)
    assert packed.dtype == np.float32
    knobs = unpack(packed)
    greedy = config.temperature == 0
    assert all(part.shape == (1,) for part in (*knobs[:6], *knobs.limits))
    assert knobs.inverse_temperature.item() == pytest.approx(1 / (config.temperature or 1))
    assert knobs.first_rank.item() == 388 - (1 if greedy else config.top_k or 388)
    assert knobs.top_p.item() == pytest.approx(config.top_p)
    assert knobs.min_p.item() == pytest.approx(config.min_p)
    assert knobs.log_penalty.item() == pytest.approx(math.log(config.repetition_penalty), abs=1e-6)
    assert knobs.guidance_scale.item() == pytest.approx(config.guidance_scale)
    assert [limit.item() for limit in knobs.limits] == list(grammar.limits_of(config))


def test_gumbel_noise_is_standard() -> None:
    noise = gumbel_noise(np.random.default_rng(0), 500)
    assert noise.shape == (500, VOCABULARY_SIZE)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.01)
