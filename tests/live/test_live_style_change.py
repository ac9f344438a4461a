"""Another style while it plays: the music goes on, and goes over to it without a gap."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from simulated_time import World
from small_adapters import save_adapter, save_cloud_adapter
from small_concert import (
    GENERATOR,
    SPECTOCLOUD,
    Account,
    save_checkpoint,
    small_config,
    wait_for,
)

from kmidi_mlx.adapter_file import open_adapters
from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import EventGenerator, compiled_step
from kmidi_mlx.live.clock import BEAT_STEPS
from kmidi_mlx.live.concert import Concert
from kmidi_mlx.models.adapters import AdaptedModel, adapt
from kmidi_mlx.models.loading import load_generator, load_spectocloud
from kmidi_mlx.models.quantization import quantize_base


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint(tmp_path_factory.mktemp("models") / "generator", GENERATOR)
    for seed, name in enumerate(("mine", "yours")):
        save_adapter(folder, name, seed)
    save_adapter(
        folder, "wide", model_config=type(GENERATOR.model)(
            hidden_dim=128, num_layers=1, num_heads=2, ffn_dim=96, context_length=96,
            cross_attention_layers=(0,),
        ),
    )  # fmt: skip
    return folder


@pytest.fixture
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(patch)


def slow_reading(world: World, seconds: float) -> None:
    """Let it take so long to read a whole context."""
    world.reading_seconds = seconds / 256
    world.conductor.reading_seconds = dict.fromkeys((False, True), world.reading_seconds)


def test_a_stream_reads_again_with_the_weights_that_are_new(generator: Path) -> None:
    """It then writes what one would that had the weights from the beginning."""
    model = load_generator(generator).model
    step = compiled_step(model)
    prompt = [300, 360, 60, 280, 64, 290, 188, 260]
    stream = EventGenerator(model, SamplingConfig(), prompt=prompt, step=step)
    plain = [stream.next_event() for _ in range(12)]
    adapted = AdaptedModel(model)
    style = open_adapters(["mine:0.8", "yours:-0.4"], generator, "midi_generator")
    adapted.use(style)
    stream.rewind(12)
    stream.read_again()
    changed = [stream.next_event() for _ in range(30)]

    other = load_generator(generator).model
    adapt(other, style)
    for name, weight in tree_flatten(model.parameters()):
        np.testing.assert_array_equal(weight, dict(tree_flatten(other.parameters()))[name])
    fresh = EventGenerator(other, SamplingConfig(), prompt=prompt)
    assert changed == [fresh.next_event() for _ in range(30)]
    assert changed[:12] != plain
    adapted.use([])
    stream.rewind(30)
    stream.read_again()
    assert [stream.next_event() for _ in range(12)] == plain


def test_a_quantised_base_is_compiled_anew_by_itself(generator: Path) -> None:
    model = load_generator(generator).model
    quantize_base(model, 8)
    stream = EventGenerator(model, SamplingConfig(), step=compiled_step(model))
    plain = [stream.next_event() for _ in range(12)]
    adapted = AdaptedModel(model)
    style = open_adapters(["mine"], generator, "midi_generator")
    for _ in range(2):
        adapted.use(style)
        stream.rewind(12)
        stream.read_again()
        assert [stream.next_event() for _ in range(12)] != plain
        adapted.use([])
        stream.rewind(12)
        stream.read_again()
        assert [stream.next_event() for _ in range(12)] == plain


def test_a_stream_may_forget_what_it_need_not_read_again(generator: Path) -> None:
    model = load_generator(generator).model
    step = compiled_step(model)
    stream = EventGenerator(model, SamplingConfig(), step=step)
    for _ in range(150):
        stream.next_event()
    assert (stream.remembered, stream.rewindable) == (96, 95)
    stream.rewind(3)
    stream.read_again(40)
    assert stream.remembered == 40
    assert stream.rewindable in (38, 39)
    written = [stream.next_event() for _ in range(20)]
    stream.rewind(stream.rewindable)
    stream.read_again(40)
    assert stream.remembered < 5
    stream.feed(written)
    assert [stream.next_event() for _ in range(200)]
    assert stream.remembered == 96


@pytest.mark.parametrize("token_seconds", [0.0005, 0.012])
def test_it_is_read_while_what_is_planned_plays_on(world: World, token_seconds: float) -> None:
    world.token_seconds = token_seconds
    slow_reading(world, 1.2)
    world.play(8.0)
    before, gaps = world.conductor.replans, world.underruns
    for style in (1, 2):
        world.style = style
        world.run(6.0)
        assert len(world.worn) == style
        assert world.conductor.replans == before + style
    assert world.underruns == gaps == 0
    # what was far enough ahead stays: it was heard while the context was read
    for moment, cut in zip(world.worn, world.cuts[-2:], strict=True):
        assert cut % BEAT_STEPS == 0
        assert cut - world.clock.step_at(moment) > 120
    assert not world.conductor.needed_steps
    assert world.conductor.reading_seconds[False] == pytest.approx(1.2 / 256, rel=0.2)
    # other changes are as quick as ever
    assert world.conductor.replan_seconds < 0.3


def test_a_reading_that_takes_longer_than_the_plan_has_more_written_first(world: World) -> None:
    slow_reading(world, 4.0)
    world.change("sampling", max_polyphony=4)
    world.play(8.0)
    world.style = 1
    world.run(14.0)
    assert len(world.worn) == 1
    assert world.underruns == 0


def test_a_storm_of_feelings_holds_it_up_for_some_seconds_only(world: World) -> None:
    slow_reading(world, 1.0)
    world.play(8.0)
    world.style = 1
    begun = world.now
    for turn in range(600):
        world.change("music", valence=turn % 20 / 20)
        world.frame()
    assert len(world.worn) == 1
    assert world.worn[0] - begun < 9.0
    assert world.underruns == 0


def test_where_nothing_plays_it_is_there_at_once(world: World) -> None:
    world.ring.capacity = 4096
    world.style = 1
    world.frame()
    assert len(world.worn) == 1
    slow_reading(world, 30.0)
    world.play(6.0)
    world.transport = "paused"
    world.frame()
    world.style = 2
    world.frame()
    world.frame()
    assert len(world.worn) == 2
    world.play(2.0)
    world.style = 3
    world.frame()
    assert world.conductor.needed_steps > 2000
    world.style = 2
    world.frame()
    assert not world.conductor.needed_steps
    assert len(world.worn) == 2


@pytest.fixture
def concert_of(generator: Path, tmp_path: Path) -> Iterator[Callable[..., Concert]]:
    concerts: list[Concert] = []

    def make(**sections: Any) -> Concert:
        spectocloud = sections.pop("spectocloud", None)
        concert = Concert(small_config(generator, spectocloud, **sections), tmp_path / "takes")
        concerts.append(concert)
        concert.start()
        assert concert.engine.ready.wait(30.0)
        concert.raise_failure()
        return concert

    yield make
    for concert in concerts:
        concert.close()


def weights(concert: Concert) -> list[mx.array]:
    """The weights that adapters change; whoever asks must not while they change."""
    return [block.attention.qkv.weight for block in concert.engine._adapted._model.blocks]


def in_force(concert: Concert) -> dict[str, float]:
    return {row["name"]: row["scale"] for row in concert.state()["adapters"] if row["scale"]}


def test_it_is_heard_without_a_restart_and_without_a_gap(
    concert_of: Callable[..., Concert], generator: Path, tmp_path: Path
) -> None:
    concert = concert_of(music={"tempo": 80.0}, loop={"note_ring": 1024})
    account = Account()
    concert.player.add(account)
    concert.apply("transport", {"action": "play"})
    wait_for(lambda: concert.stats()["lookahead_bars"] > 1.5)
    engine = concert.engine
    assert engine.conductor is not None
    states: list[Any] = []
    concert.subscribe(lambda session: states.append(concert.state()["adapters"]))
    replans = engine.conductor.replans
    result = concert.apply("load_adapter", {"name": "mine", "scale": 0.7})
    assert result == {"adapters": concert.state()["adapters"]}
    assert {"name": "mine", "scale": 0.7} in states[-1]
    wait_for(lambda: engine.conductor.replans > replans)  # type: ignore[union-attr]
    wanted = load_generator(generator).model
    adapt(wanted, open_adapters(["mine:0.7"], generator, "midi_generator"))
    for held, block in zip(weights(concert), wanted.blocks, strict=True):
        np.testing.assert_array_equal(np.array(held), np.array(block.attention.qkv.weight))
    for wrong, sentence in (
        ({"name": "wide"}, "the adapter 'wide' does not fit the model"),
        ({"name": "../mine"}, "did you mean mine"),
        ({"name": "mine", "scale": 9.0}, "from -4 to 4"),
    ):
        with pytest.raises(KmidiError, match=sentence):
            concert.apply("load_adapter", wrong)
        assert in_force(concert) == {"mine": 0.7}
    concert.apply("record", {"action": "start", "name": "take"})
    concert.apply("load_adapter", {"name": "yours", "scale": -0.5})
    begun = len(account.begun)
    wait_for(lambda: len(account.begun) > begun + 10)
    save_adapter(generator, "new")
    assert {"name": "new", "scale": 0.0} in concert.apply("adapters", {})["adapters"]
    concert.apply("record", {"action": "stop"})
    assert '"mine": 0.7' in (tmp_path / "takes" / "take" / "take.json").read_text()
    concert.apply("load_adapter", {"name": None})
    assert in_force(concert) == {}
    assert concert.stats()["underruns"] == 0
    assert account.problems == []


def test_fifty_changes_leave_nothing_behind(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of(cloud={"source": "off"}, loop={"frames_per_second": 120})
    concert.apply("transport", {"action": "play"})
    wait_for(lambda: concert.stats()["lookahead_bars"] > 0.3)
    # with nothing to be in time for, changes follow one another at once
    concert.apply("transport", {"action": "pause"})
    engine, threads = concert.engine, 0
    for turn in range(60):
        name, scale = (("mine", "yours")[turn % 2], (0.5, 1.0, 0.0)[turn % 3])
        concert.apply("load_adapter", {"name": name, "scale": scale})
        version = engine.styles.wanted.version  # type: ignore[union-attr]
        engine.conductor._replanned = -1e9  # type: ignore[union-attr]
        wait_for(lambda: engine.conductor._style == version)  # type: ignore[union-attr]  # noqa: B023
        if turn == 9:
            gc.collect()
            held, threads = mx.get_active_memory(), threading.active_count()
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gc.collect()
    assert mx.get_active_memory() - held < 2_000_000
    assert threading.active_count() == threads
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 60_000
    assert engine.conductor.replans >= 55  # type: ignore[union-attr]


def test_it_begins_in_the_style_that_is_asked_for(
    concert_of: Callable[..., Concert], generator: Path
) -> None:
    concert = concert_of(models={"adapters": ("yours:0.5",)})
    assert in_force(concert) == {"yours": 0.5}
    wanted = load_generator(generator).model
    adapt(wanted, open_adapters(["yours:0.5"], generator, "midi_generator"))
    np.testing.assert_array_equal(
        np.array(weights(concert)[0]), np.array(wanted.blocks[0].attention.qkv.weight)
    )
    concert.apply("load_adapter", {"name": "yours", "scale": 0})
    wait_for(lambda: concert.engine.conductor._style == 2)  # type: ignore[union-attr]
    plain = load_generator(generator).model
    np.testing.assert_array_equal(
        np.array(weights(concert)[0]), np.array(plain.blocks[0].attention.qkv.weight)
    )


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"adapters": ("wide",)}, "does not fit the model"),
        ({"adapters": ("his",)}, "no adapter is called 'his'"),
        ({"cloud_adapters": ("mine",)}, "no network of .* draws"),
    ],
)
def test_what_cannot_be_worn_is_said_before_it_begins(
    concert_of: Callable[..., Concert], models: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(KmidiError, match=sentence):
        concert_of(models=models)


def test_the_network_that_draws_has_adapters_of_its_own(
    concert_of: Callable[..., Concert], tmp_path: Path
) -> None:
    spectocloud = save_checkpoint(tmp_path / "spectocloud", SPECTOCLOUD)
    with pytest.raises(KmidiError, match=r"no adapter is called 'mine'; .*spectocloud has none"):
        concert_of(spectocloud=spectocloud, models={"cloud_adapters": ("mine",)})
    save_cloud_adapter(spectocloud, "glow")
    concert = concert_of(spectocloud=spectocloud, models={"cloud_adapters": ("glow:0.5",)})
    held = dict(tree_flatten(concert.engine._visualiser._model.parameters()))  # type: ignore[union-attr]
    plain = load_spectocloud(spectocloud).model
    before = dict(tree_flatten(plain.parameters()))
    adapt(plain, open_adapters(["glow:0.5"], spectocloud, "spectocloud"))
    after = dict(tree_flatten(plain.parameters()))
    changed = [name for name in after if not np.array_equal(after[name], before[name])]
    assert changed
    for name in changed:
        np.testing.assert_array_equal(np.array(held[name]), np.array(after[name]))
