"""The application as a whole, with tiny networks: what front ends are promised holds."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_concert import (
    GENERATOR,
    SPECTOCLOUD,
    Account,
    our_threads,
    save_checkpoint,
    small_config,
    wait_for,
)

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.live.commands import COMMANDS, STREAM_COMMANDS
from kmidi_mlx.live.concert import Concert
from kmidi_mlx.live.take import Take
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.music.events import decode, encode
from kmidi_mlx.music.midi_file import read_midi


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "generator", GENERATOR)


@pytest.fixture(scope="module")
def spectocloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "spectocloud", SPECTOCLOUD)


@pytest.fixture
def concert_of(generator: Path, tmp_path: Path) -> Iterator[Callable[..., Concert]]:
    """A function that starts a concert; an `Account` listens, and has no complaint in the end."""
    begun = our_threads()
    concerts: list[Concert] = []
    accounts: list[Account] = []

    def make(spectocloud: Path | None = None, **sections: Any) -> Concert:
        concert = Concert(small_config(generator, spectocloud, **sections), tmp_path / "takes")
        concerts.append(concert)
        concert.start()
        assert concert.engine.ready.wait(30.0)
        concert.raise_failure()
        accounts.append(Account())
        concert.player.add(accounts[-1])
        return concert

    yield make
    for concert in concerts:
        concert.close()
    for account in accounts:
        assert account.problems == []
        assert not account.sounding
        assert account.closed
    wait_for(lambda: our_threads() == begun, what=f"for {our_threads()} to end")


def account_of(concert: Concert) -> Account:
    (account,) = [v.sink for v in concert.player._voices if isinstance(v.sink, Account)]
    return account


def play(concert: Concert, notes: int = 5) -> Account:
    account = account_of(concert)
    count = len(account.begun)
    concert.apply("transport", {"action": "play"})
    wait_for(lambda: len(account.begun) >= count + notes)
    return account


def texts(concert: Concert, topic: str) -> list[str]:
    return [row["text"] for row in concert.state()["notices"] if row["topic"] == topic]


def test_it_answers_every_command_that_front_ends_may_send(
    concert_of: Callable[..., Concert],
) -> None:
    concert = concert_of()
    assert set(concert.session.commands) == set(COMMANDS) - set(STREAM_COMMANDS)


def test_it_plays_and_stop_leaves_silence_in_the_sound_too(
    concert_of: Callable[..., Concert],
) -> None:
    concert = concert_of(music={"tempo": 200.0})
    account = play(concert)
    reader = concert.sound.reader(200)
    wait_for(lambda: (b := reader.read(1.0)) is not None and np.abs(b.samples).max() > 300)
    concert.apply("transport", {"action": "stop"})
    wait_for(lambda: account.silenced)
    assert not account.sounding
    assert not concert.clock.running
    assert concert.stats()["sounding"] == 0
    # how soon is proved in simulated time; here a busy machine may hold the sound up
    wait_for(lambda: (b := reader.read(1.0)) is not None and np.abs(b.samples).max() < 4, 3.0)
    assert np.abs(reader.read(1.0).samples).max() < 4
    reader.close()
    wait_for(lambda: concert.plan()["notes"] == [])
    assert concert.plan()["now_step"] == 0.0


def test_panic_silences_and_the_music_goes_on(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of()
    account = play(concert)
    wait_for(lambda: account.sounding)
    concert.apply("transport", {"action": "panic"})
    count = len(account.begun)
    wait_for(lambda: len(account.begun) > count + 3)
    assert concert.state()["transport"] == "playing"


def test_a_change_of_emotion_plans_anew_and_is_shown(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of()
    play(concert)
    conductor = concert.engine.conductor
    assert conductor is not None
    told: list[int] = []
    concert.subscribe(lambda session: told.append(session.version))
    replans = conductor.replans
    answer = concert.apply("update_emotion", {"valence": -0.7, "arousal": -0.4})
    assert answer["label"] == "sad"
    assert told
    wait_for(lambda: conductor.replans == replans + 1)
    assert conductor._direction.emotion == Emotion.of(-0.7, -0.4)
    frame = concert.clouds.newest
    assert frame is not None
    wait_for(lambda: concert.clouds.newest is not None and concert.clouds.newest.valence < 0.3)


def test_the_plan_is_what_was_played_and_what_will_be(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of()
    account = play(concert, 12)
    plan = concert.plan()
    assert (plan["beat_steps"], plan["bar_steps"]) == (50, 200)
    assert plan["steps_per_second"] == pytest.approx(250.0)
    assert abs(plan["time"] - time.monotonic()) < 1.0
    now = plan["now_step"]
    rows = plan["notes"]
    played = [row for row in rows if row[4]]
    planned = [row for row in rows if not row[4]]
    assert played
    assert planned
    assert all(row[0] >= now - 20 for row in planned)
    for start, end, pitch, velocity, _ in rows:
        assert 0 <= pitch < 128
        assert 1 <= velocity < 128
        assert end is None or end >= start
    heard = {pitch for _, pitch, _ in account.begun}
    assert {row[2] for row in played} <= heard
    # what is planned is played so
    pitch = planned[0][2]
    begin = concert.clock.time_of(planned[0][0])
    wait_for(lambda: time.monotonic() > begin + 0.3)
    assert any(at == pytest.approx(begin, abs=0.15) and p == pitch for at, p, _ in account.begun)


def test_a_piece_beside_the_music_is_what_generate_writes(
    concert_of: Callable[..., Concert], generator: Path, tmp_path: Path
) -> None:
    concert = concert_of()
    play(concert)
    with ThreadPoolExecutor(2) as people:
        asked = {"valence": 0.5, "arousal": -0.2, "seed": 5}
        both = [
            people.submit(concert.apply, "generate_midi", {"seconds": 2.5, **asked})
            for _ in range(2)
        ]
        first, second = (future.result(30.0) for future in both)
    assert first == second
    file = tmp_path / "piece.mid"
    file.write_bytes(base64.b64decode(first["midi"]))
    notes = read_midi(file)
    assert len(notes) == first["notes"] > 5
    model = load_generator(generator).model
    sampling = concert.session.settings.sampling
    wanted = generate(model, sampling, 2.5, seed=5, emotion=Emotion.of(0.5, -0.2))
    assert encode(notes).tolist() == wanted.tolist()
    assert first["seconds"] == pytest.approx(decode(wanted).duration_seconds, abs=1e-3)
    # without numbers it is that of the music
    default = concert.apply("generate_midi", {"seconds": 1.0})
    assert default["notes"] > 0
    for wrong in (0.0, -1.0, 601.0, float("nan")):
        with pytest.raises(KmidiError, match="seconds"):
            concert.apply("generate_midi", {"seconds": wrong})
    with pytest.raises(KmidiError, match="valence"):
        concert.apply("generate_midi", {"seconds": 1.0, "valence": 3.0})


def test_the_present_cloud_as_numbers_and_as_a_picture(
    concert_of: Callable[..., Concert], spectocloud: Path
) -> None:
    concert = concert_of(spectocloud=spectocloud)
    wait_for(lambda: concert.clouds.newest is not None)
    assert concert.state()["draws"] == "network"
    whole = concert.apply("render_spectocloud", {})
    numbers = np.frombuffer(base64.b64decode(whole["float16"]), "<f2").reshape(-1, 10)
    assert whole["points"] == len(numbers) == 200
    assert np.isfinite(numbers.astype(np.float32)).all()
    some = concert.apply("render_spectocloud", {"points": 50})
    assert some["points"] == 50
    from PIL import Image

    picture = concert.apply("render_spectocloud", {"size": 64})
    image = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    assert image.size == (64, 64)
    assert np.asarray(image).max() > 0
    for size in (1, 15, 5000, -3):
        with pytest.raises(KmidiError, match="pixels"):
            concert.apply("render_spectocloud", {"size": size})


def test_a_take_has_the_music_the_sound_and_the_clouds(
    concert_of: Callable[..., Concert], tmp_path: Path
) -> None:
    concert = concert_of()
    account = play(concert)
    assert concert.apply("record", {"action": "start", "name": "one"}) == {"recording": "one"}
    assert concert.state()["recording"] == "one"
    with pytest.raises(KmidiError, match="recorded already"):
        concert.apply("record", {"action": "start"})
    count = len(account.begun)
    wait_for(lambda: len(account.begun) > count + 10)
    time.sleep(0.5)
    files = concert.apply("record", {"action": "stop"})["files"]
    assert all((tmp_path / "takes" / file).stat().st_size > 0 for file in files)
    assert concert.state()["recording"] == ""
    take = Take.open(tmp_path / "takes" / "one")
    assert len(take.notes) > 5
    with pytest.raises(KmidiError, match="nothing is being recorded"):
        concert.apply("record", {"action": "stop"})
    concert.start_take(tmp_path / "elsewhere")
    time.sleep(0.4)
    concert.close()
    assert (tmp_path / "elsewhere" / "take.json").exists(), "closing ends the take"
    assert Take.open(tmp_path / "elsewhere").about["finished"]


def test_what_cannot_be_is_a_sentence_and_changes_nothing(
    concert_of: Callable[..., Concert], tmp_path: Path
) -> None:
    concert = concert_of()
    settings = concert.session.settings
    refused: list[tuple[dict[str, Any], str]] = [
        ({"cloud.source": "network"}, "there is no network in"),
        ({"cloud.feel": True}, "choose something to listen to"),
        ({"ports.output": "socket:127.0.0.1:1"}, "nothing can be reached"),
        ({"ports.output": "file:../../out.mid"}, "leaves the folder"),
        ({"cloud.listen": "/etc/hostname"}, "is not in the folder"),
        ({"cloud.listen": "missing.wav"}, "no such sound file"),
        ({"ports.input": "socket:99999"}, "names no TCP port"),
    ]
    for change, complaint in refused:
        with pytest.raises(KmidiError, match=complaint):
            concert.apply("set", {"music.tempo": 60.0, **change})
        assert concert.session.settings == settings
    assert not (tmp_path / "out.mid").exists()


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"cloud": {"source": "network"}}, "no such checkpoint"),
        ({"ports": {"output": "socket:127.0.0.1:1"}}, "nothing can be reached"),
        ({"alerts": {"log": "/nowhere/log.csv"}}, "nowhere"),
        ({"cloud": {"listen": "/nowhere.wav"}}, "no such sound file"),
        ({"models": {"generator": "/nowhere"}}, "no such checkpoint"),
    ],
)
def test_a_start_that_cannot_be_leaves_nothing_running(
    generator: Path, tmp_path: Path, sections: dict[str, Any], complaint: str
) -> None:
    threads = our_threads()
    concert = Concert(small_config(generator, **sections), tmp_path / "takes")
    with pytest.raises(KmidiError, match=complaint):
        concert.start()
    wait_for(lambda: our_threads() == threads)
    concert.close()
    assert not (tmp_path / "takes").exists()


def test_a_network_that_is_broken_is_refused(generator: Path, tmp_path: Path) -> None:
    broken = save_checkpoint(tmp_path / "spectocloud", SPECTOCLOUD, broken=True)
    concert = Concert(small_config(generator, broken), tmp_path / "takes")
    with pytest.raises(KmidiError, match="NaN or Inf"):
        concert.start()
    concert.close()


def test_an_engine_that_fails_stops_the_music_and_the_rest_goes_on(
    concert_of: Callable[..., Concert], monkeypatch: pytest.MonkeyPatch
) -> None:
    concert = concert_of()
    account = play(concert)

    def fail(*arguments: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(concert.engine._visualiser, "draw", fail)
    wait_for(lambda: not concert.engine.is_alive())
    assert not account.sounding
    assert "none left" in texts(concert, "engine")[0]
    with pytest.raises(MemoryError):
        concert.raise_failure()
    # nobody waits for what will not come, and what needs no engine is answered
    with pytest.raises(KmidiError, match="not finished"):
        concert.apply("generate_midi", {"seconds": 1.0})
    assert concert.stats()["sounding"] == 0
    assert concert.apply("transport", {"action": "stop"}) == {"transport": "stopped"}
    count = len(account.begun)
    concert.apply("transport", {"action": "play"})
    time.sleep(0.1)
    assert len(account.begun) == count


@pytest.mark.parametrize("state", ["new", "loading", "warm", "playing", "paused", "recording"])
def test_it_can_be_closed_in_any_state(generator: Path, tmp_path: Path, state: str) -> None:
    threads = our_threads()
    concert = Concert(small_config(generator), tmp_path / "takes")
    account = Account()
    concert.player.add(account)
    if state != "new":
        concert.start()
    if state not in ("new", "loading"):
        assert concert.engine.ready.wait(30.0)
    if state in ("playing", "paused", "recording"):
        concert.apply("transport", {"action": "play"})
        wait_for(lambda: account.sounding)
    if state == "paused":
        concert.apply("transport", {"action": "pause"})
    if state == "recording":
        concert.apply("record", {"action": "start", "name": "cut"})
    begun = time.monotonic()
    concert.close()
    assert time.monotonic() - begun < 3.0
    concert.close()
    assert account.closed
    assert not account.sounding
    assert account.problems == []
    wait_for(lambda: our_threads() == threads, what=f"for {our_threads()}")
    if state == "recording":
        assert Take.open(tmp_path / "takes" / "cut").about["finished"]


def test_closing_while_a_piece_is_being_written(generator: Path, tmp_path: Path) -> None:
    concert = Concert(small_config(generator), tmp_path / "takes")
    concert.start()
    assert concert.engine.ready.wait(30.0)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            concert.apply("generate_midi", {"seconds": 600.0})
        except KmidiError as error:
            errors.append(error)

    person = threading.Thread(target=ask)
    person.start()
    wait_for(lambda: concert.engine._pieces._writer is not None)
    concert.close()
    person.join(5.0)
    assert not person.is_alive()
    assert "kmidi is ending" in str(errors[0])


def test_after_many_plays_and_stops_everything_has_its_size(
    concert_of: Callable[..., Concert], tmp_path: Path
) -> None:
    concert = concert_of()
    account = play(concert, 1)

    def sizes() -> tuple[object, ...]:
        return (
            our_threads(),
            len(concert.sound._readers),
            len(concert.player._voices),
            len(concert.state()["notices"]),
        )

    before = None
    for turn in range(8):
        count = len(account.begun)
        concert.apply("transport", {"action": "play"})
        wait_for(lambda count=count: len(account.begun) > count)  # type: ignore[misc]
        concert.apply("record", {"action": "start", "name": f"take{turn}"})
        concert.apply("record", {"action": "stop"})
        concert.apply("transport", {"action": "pause" if turn % 3 == 2 else "stop"})
        wait_for(lambda: not concert.clock.running and not account.sounding)
        if turn == 0:
            wait_for(lambda: len(concert.sound._readers) == 1)
            before = sizes()
    wait_for(lambda: sizes() == before, what=f"for {sizes()} to be {before}")


def test_the_first_note_is_in_time_also_after_a_pause(concert_of: Callable[..., Concert]) -> None:
    """The player sleeps while nothing is due; who starts the clock has to wake it."""
    concert = concert_of()
    account = play(concert)
    late = []
    for _ in range(7):
        concert.apply("transport", {"action": "pause"})
        wait_for(lambda: not concert.clock.running)
        time.sleep(0.05)
        concert.player.lateness.clear()
        count = len(account.begun)
        concert.apply("transport", {"action": "play"})
        wait_for(lambda count=count: len(account.begun) > count)  # type: ignore[misc]
        late.append(concert.player.lateness.largest_ms)
    # asleep it would be up to a quarter of a second; a busy machine may once be slow
    assert sorted(late)[3] < 60.0


def test_a_keyboard_is_heard_at_once_and_answered(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of(music={"mode": "duet", "tempo": 300.0}, ports={"input": "socket:0"})
    account = account_of(concert)
    keys = concert._devices._input
    assert keys is not None
    concert.apply("transport", {"action": "play"})
    wait_for(lambda: concert.clock.running)
    port = int(keys.name.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as hands:
        hands.sendall(bytes((0x90, 61, 100)))
        wait_for(lambda: account.sounding == {61})
        hands.sendall(bytes((0x80, 61, 0)))
        wait_for(lambda: not account.sounding)
        assert [pitch for _, pitch, _ in account.begun] == [61]
        wait_for(lambda: len(account.begun) > 4, what="for an answer")
        hands.sendall(bytes((0x90, 40, 100)))
        wait_for(lambda: 40 in account.sounding)
    # who goes lets go
    wait_for(lambda: 40 not in account.sounding)


def test_the_tempo_and_the_volume_follow(concert_of: Callable[..., Concert]) -> None:
    concert = concert_of()
    play(concert)
    concert.apply("set", {"music.tempo": 90, "sound.volume": 0.1, "sound.polyphony": 8})
    wait_for(lambda: concert.clock.tempo == 90.0)
    assert concert._piano.volume == 0.1
    assert concert._piano._sampler.polyphony == 8


def test_figures_are_for_json_and_may_be_added(concert_of: Callable[..., Concert]) -> None:
    import json

    concert = concert_of()
    play(concert)
    concert.add_figure("clients", lambda: 3)
    stats = concert.apply("get_performance_stats", {})
    assert stats["clients"] == 3
    assert stats["memory_gb"] > 0.05
    for told in (stats, concert.state(), concert.plan(), concert.apply("describe", {})):
        json.dumps(told, allow_nan=False)
    assert texts(concert, "loading") == []
    assert concert.state()["ready"]
