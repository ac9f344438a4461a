"""A stream in PyTorch gives the events of the stream in MLX, whatever is asked of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation import generator as ours
from kmidi_mlx.models import kv_cache as ours_cache
from kmidi_mlx.music.events import START_TOKEN, VOCABULARY_SIZE, decode, encode, first_violation
from kmidi_mlx.music.notes import Notes

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.generation import generator as theirs  # noqa: E402
from kmidi_torch.generation.decoder import TorchDecoder  # noqa: E402
from kmidi_torch.models import kv_cache as theirs_cache  # noqa: E402
from kmidi_torch.models.midi_transformer import Conditions  # noqa: E402

HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
LIVELY = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
DEFAULT = SamplingConfig()
# without the penalty a greedy stream soon repeats itself
GREEDY = SamplingConfig(temperature=0.0, repetition_penalty=3.0)
GUIDED = SamplingConfig(guidance_scale=2.5, min_p=0.01)
TIGHT = SamplingConfig(
    temperature=1.2,
    top_k=0,
    top_p=1.0,
    max_polyphony=3,
    max_note_seconds=0.7,
    max_rest_seconds=0.2,
    lowest_pitch=50,
    highest_pitch=70,
)
Pairs = Callable[..., tuple[Any, Any]]


def read(stream: Any, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


def piece(seed: int, count: int = 20) -> np.ndarray:
    """Canonical events of random notes between pitch 55 and 65."""
    rng = np.random.default_rng(seed)
    onset = rng.uniform(0, 3, count)
    length = rng.uniform(0.05, 0.5, count)
    velocity = rng.integers(1, 128, count)
    events = encode(Notes.build(rng.integers(55, 66, count), velocity, onset, onset + length))
    return encode(decode(events))


@pytest.mark.parametrize(
    ("sampling", "seed"), [(LIVELY, 1), (DEFAULT, 1), (GREEDY, 1), (GUIDED, 1), (TIGHT, 4)]
)
def test_the_same_seed_gives_the_same_events(
    monkeypatch: pytest.MonkeyPatch,
    pair_of: Pairs,
    no_near_ties: list[int],
    sampling: SamplingConfig,
    seed: int,
) -> None:
    for module in (ours_cache, theirs_cache):
        monkeypatch.setattr(module, "CAPACITY_STEP", 8)  # grows, then wraps
    mine, other = pair_of(seed)
    found = read(theirs.EventGenerator(other, sampling, seed, HAPPY, chord=5, key=2), 300)
    expected = read(ours.EventGenerator(mine, sampling, seed, HAPPY, chord=5, key=2), 300)
    assert found == expected
    assert no_near_ties[0] == 301  # one ahead
    assert len(set(found)) > 30


def steered(stream: Any) -> list[int]:
    """Reads events and changes everything that can be changed."""
    changes: list[Callable[[], None]] = [
        lambda: stream.set_emotion(SAD),
        lambda: stream.set_harmony(7, 3),
        lambda: stream.set_sampling(GUIDED),
        lambda: stream.set_emotion(None),
        lambda: stream.set_sampling(TIGHT),
        lambda: stream.set_sampling(GREEDY),
    ]
    events = []
    for change in changes:
        events += read(stream, 37)
        change()
    return [*events, *read(stream, 40), *stream.finish()]


@pytest.mark.parametrize("seed", [2, 3])
def test_changes_are_heard_at_the_same_event(
    pair_of: Pairs, no_near_ties: list[int], seed: int
) -> None:
    mine, other = pair_of(seed)
    streams = [m.EventGenerator(w, LIVELY, seed, HAPPY) for m, w in ((theirs, other), (ours, mine))]
    found, expected = (steered(stream) for stream in streams)
    assert found == expected
    assert streams[0].seconds == streams[1].seconds > 0
    assert no_near_ties[0] == 263


@pytest.mark.parametrize("count", [3, 60])
def test_a_prompt_is_continued_as_in_mlx(
    pair_of: Pairs, no_near_ties: list[int], count: int
) -> None:
    mine, other = pair_of(3)
    prompt = piece(count, count)  # 60 notes are more events than the model looks back on
    times: list[list[float]] = [[], []]
    found, expected = (
        module.generate(
            model,
            LIVELY,
            3.0,
            seed=5,
            emotion=HAPPY,
            chord=3,
            key=4,
            prompt=prompt,
            changes=[(2.0, HAPPY), (1.0, SAD)],
            on_time=heard.append,
        )
        for module, model, heard in ((theirs, other, times[0]), (ours, mine, times[1]))
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[: len(prompt)], prompt)
    assert found.dtype == np.uint16
    assert len(found) > len(prompt) + 5
    assert times[0] == times[1]
    assert times[0][-1] == 3.0
    assert no_near_ties[0] > 20


def test_every_condition_changes_the_music(pair_of: Pairs) -> None:
    _, model = pair_of()

    def events(*arguments: Any) -> tuple[int, ...]:
        return tuple(read(theirs.EventGenerator(model, LIVELY, 5, *arguments), 60))

    heard = [events(None), events(Emotion.of(0.0, 0.0)), events(HAPPY), events(SAD)]
    heard += [events(HAPPY, 5, 0), events(HAPPY, 0, 5)]
    assert len(set(heard)) == len(heard)


@pytest.mark.parametrize("sampling", [DEFAULT, TIGHT, GUIDED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_valid_music(
    pair_of: Pairs, sampling: SamplingConfig, dtype: Any
) -> None:
    _, model = pair_of(3)
    model.to(dtype)
    decoder = TorchDecoder(model)
    events = theirs.generate(decoder, sampling, 2.0, seed=1, emotion=SAD)
    assert decoder._cache.keys[0].dtype == dtype
    assert len(events) > 5
    assert first_violation(events) is None
    assert decode(events).duration_seconds <= 2.0 + 1e-9


def test_broken_weights_write_the_same_valid_music(pair_of: Pairs) -> None:
    mine, other = pair_of()
    for weight in other.parameters():
        weight.data.fill_(torch.nan)
    mine.load_weights([("final_norm.weight", np.nan * mine.final_norm.weight)], strict=False)
    found = theirs.generate(other, LIVELY, 0.1, seed=2)
    np.testing.assert_array_equal(found, ours.generate(mine, LIVELY, 0.1, seed=2))
    assert first_violation(found) is None
    assert len(found) > 10


def test_wrong_input_is_refused(pair_of: Pairs) -> None:
    _, model = pair_of()
    with pytest.raises(KmidiError, match="cannot write -1 seconds"):
        theirs.generate(model, LIVELY, -1)
    with pytest.raises(KmidiError, match="event 1 of the prompt is 388"):
        theirs.generate(model, LIVELY, 1.0, prompt=[60, START_TOKEN])


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def test_an_endless_stream_needs_no_more_memory(pair_of: Pairs) -> None:
    _, model = pair_of()
    stream = theirs.EventGenerator(model, GUIDED, 0, HAPPY)
    cache = stream._decoder._cache  # type: ignore[attr-defined]
    read(stream, 100)  # the ring of 32 is full
    held, bytes_held = tensors(), cache.nbytes
    assert held > 20
    for _ in range(4):
        read(stream, 60)
        assert cache.offset < 5 * 32
        assert tensors() <= held  # what earlier tests left may go meanwhile
        assert cache.nbytes == bytes_held
    assert len(stream._history) == 32


def test_the_ring_is_written_in_place(pair_of: Pairs) -> None:
    _, model = pair_of()
    stream = theirs.EventGenerator(model, LIVELY)
    cache = stream._decoder._cache  # type: ignore[attr-defined]
    places = [array.data_ptr() for array in cache.keys + cache.values]
    read(stream, 60)  # before positions are moved back
    assert places == [array.data_ptr() for array in cache.keys + cache.values]


def test_the_ring_goes_with_its_reader(pair_of: Pairs) -> None:
    stream = theirs.EventGenerator(pair_of()[1], LIVELY)
    read(stream, 3)
    gone = weakref.ref(stream._decoder._cache)  # type: ignore[attr-defined]
    gc.disable()
    try:
        del stream
        assert gone() is None
    finally:
        gc.enable()


class WholeHistory:
    """The slow reference: no cache, every step computes all events anew, as in training."""

    device = torch.device("cpu")

    def __init__(self, model: Any) -> None:
        self.model, self.context_length = model, model.config.context_length

    def reset(self, rows: int) -> None:
        self.tokens = torch.zeros((rows, 0), dtype=torch.int32)
        self.conditions = None

    def condition(self, emotion: Any, chords: Any, keys: Any) -> None:
        rows = len(self.tokens)
        assert [tuple(x.shape) for x in (emotion, chords, keys)] == [(rows, 64), (rows, 1), (rows,)]
        assert [x.dtype for x in (emotion, chords, keys)] == [torch.float32] + 2 * [torch.int32]
        self.conditions = Conditions(emotion, chords, keys)

    def read(self, tokens: Any) -> None:
        assert self.conditions is not None
        assert tokens.dtype == torch.int32
        self.tokens = torch.cat([self.tokens, tokens], dim=1)

    def step(self, token: Any) -> Any:
        assert token.shape == (1,)
        self.read(token.expand(len(self.tokens), 1))
        with torch.no_grad():
            return self.model(self.tokens, self.conditions, torch.zeros_like(self.tokens))[:, -1]


@pytest.mark.parametrize("sampling", [LIVELY, GUIDED, GREEDY])
def test_any_decoder_that_computes_the_model_writes_the_same(
    pair_of: Pairs, no_near_ties: list[int], sampling: SamplingConfig
) -> None:
    _, model = pair_of(1)
    prompt = piece(1, 3)
    found, expected = (
        read(theirs.EventGenerator(decoder, sampling, 1, SAD, 4, 2, prompt), 18)
        for decoder in (WholeHistory(model), model)
    )
    assert found == expected
    assert no_near_ties[0] == 2 * 19


@pytest.fixture
def compiler_without_machine_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler_without_machine_code")
def test_one_compiled_graph_serves_the_whole_piece(pair_of: Pairs) -> None:
    _, model = pair_of(1)
    decoder = TorchDecoder(model, compiled=True)
    stream = theirs.EventGenerator(decoder, LIVELY, 1, HAPPY, prompt=piece(1))
    found = read(stream, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        found += read(stream, 60)
        stream.set_emotion(SAD)
        found += read(stream, 60)
    plain = theirs.EventGenerator(model, LIVELY, 1, HAPPY, prompt=piece(1))
    expected = read(plain, 61)
    plain.set_emotion(SAD)
    assert found == expected + read(plain, 60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler about itself
def test_machine_code_writes_the_same(pair_of: Pairs, no_near_ties: list[int]) -> None:
    # needs a C++ compiler
    _, model = pair_of(1)
    torch.compiler.reset()
    found = read(theirs.EventGenerator(TorchDecoder(model, compiled=True), LIVELY, 1, HAPPY), 200)
    assert found == read(theirs.EventGenerator(model, LIVELY, 1, HAPPY), 200)
    assert no_near_ties[0] == 402
    assert set(found) <= set(range(VOCABULARY_SIZE))
