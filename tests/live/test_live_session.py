"""The session: every change is whole or refused in a sentence, and told to who listens."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.session import Session, Settings
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.music.chords import parse_chord, parse_key


@pytest.fixture
def session() -> Session:
    return Session(LiveConfig())


def test_settings_change_and_are_told(session: Session) -> None:
    seen: list[int] = []
    session.subscribe(lambda changed: seen.append(changed.version))
    session.apply("set", {"music.tempo": 90, "sampling.temperature": 1, "sound.volume": 0.5})
    assert session.settings.music.tempo == 90.0
    assert session.settings.sampling.temperature == 1.0
    assert session.settings.sound.volume == 0.5
    assert seen == [1]
    assert session.state()["music"]["tempo"] == 90.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"music.tempo": 1000}, r"music\.tempo: 1000.* above"),
        ({"music.tempo": "fast"}, r"music\.tempo: expected a number"),
        ({"music.tempo": float("nan")}, r"music\.tempo: nan is not"),
        ({"music.tempo": True}, r"music\.tempo: expected a number"),
        ({"music.tempi": 100}, r"did you mean music\.tempo"),
        ({"music.chords": "C Zm"}, "Zm"),
        ({"music.chords": "C " * 65}, "too many"),
        ({"music.key": "H:dur"}, "H:dur"),
        ({"music.mode": "solo"}, r"music\.mode: 'solo' is not one of"),
        ({"cloud.points": 700}, r"cloud\.points: 700"),
        ({"sampling.lowest_pitch": 90, "sampling.highest_pitch": 40}, "is above highest_pitch"),
        ({"models.generator": "/etc"}, "nothing called"),
        ({"loop.memory_gb": 1}, "nothing called"),
    ],
)
def test_what_cannot_be_changes_nothing(
    session: Session, change: dict[str, Any], complaint: str
) -> None:
    before, version = session.settings, session.version
    with pytest.raises(KmidiError, match=complaint):
        session.apply("set", {"music.seed": 7, **change})
    assert session.settings == before
    assert session.version == version


def test_two_that_only_fit_together_are_set_together(session: Session) -> None:
    session.apply("set", {"sampling.lowest_pitch": 100, "sampling.highest_pitch": 104})
    assert session.settings.sampling.lowest_pitch == 100


def test_an_emotion_by_numbers_or_by_label(session: Session) -> None:
    answer = session.apply("update_emotion", {"valence": -0.7, "arousal": -0.4})
    assert answer["label"] == "sad"
    assert session.apply("update_emotion", {"label": "happy"})["valence"] == 0.8
    assert session.settings.emotion.arousal == 0.5
    for wrong in ({}, {"valence": 0.1}, {"label": "happy", "valence": 0.1}, {"label": "blue"}):
        with pytest.raises(KmidiError):
            session.apply("update_emotion", wrong)
    with pytest.raises(KmidiError, match=r"music\.valence"):
        session.apply("update_emotion", {"valence": 2, "arousal": 0})


def test_chords_and_key_become_ids(session: Session) -> None:
    session.apply("set", {"music.chords": "C Am F G", "music.key": "C:maj"})
    assert session.settings.chords == tuple(parse_chord(name) for name in ("C", "Am", "F", "G"))
    assert session.settings.key == parse_key("C:maj")


def test_transport(session: Session) -> None:
    for action, state in (("play", "playing"), ("pause", "paused"), ("stop", "stopped")):
        assert session.apply("transport", {"action": action}) == {"transport": state}
        assert session.state()["transport"] == state
    for wrong in ({}, {"action": "dance"}, {"action": None}, {"action": "play", "at": 3}):
        with pytest.raises(KmidiError, match="transport takes an action"):
            session.apply("transport", wrong)


def test_commands_of_other_parts(session: Session) -> None:
    session.handle("ports", lambda arguments: {"outputs": ["a"]})
    assert session.apply("ports", {}) == {"outputs": ["a"]}
    with pytest.raises(KmidiError, match="did you mean ports"):
        session.apply("port", {})


def test_a_notice_holds_until_it_is_taken_back(session: Session) -> None:
    session.notice("weights", "warning", "random weights.")
    session.notice("weights", "info", "small weights.")
    session.notice("port", "error", "lost.")
    texts = [notice["text"] for notice in session.state()["notices"]]
    assert texts == ["small weights.", "lost."]
    session.notice("weights", "info", None)
    assert [notice["topic"] for notice in session.state()["notices"]] == ["port"]


def test_what_is_described_can_be_set_as_described(session: Session) -> None:
    options = session.apply("describe", {})["options"]
    assert len(options) > 20
    session.apply("set", {option["name"]: option["value"] for option in options})
    assert all(option["doc"] for option in options)


def test_a_guard_carries_changes_out_or_refuses_them(session: Session) -> None:
    seen: list[tuple[float, float]] = []
    in_force: list[float] = []

    def guard(before: Settings, after: Settings) -> None:
        seen.append((before.music.tempo, after.music.tempo))
        in_force.append(session.settings.music.tempo)
        if after.music.tempo > 200:
            raise KmidiError("too fast.")

    session.guard(guard)
    session.apply("set", {"music.tempo": 150})
    with pytest.raises(KmidiError, match="too fast"):
        session.apply("set", {"music.tempo": 250, "sound.volume": 0.1})
    with pytest.raises(KmidiError, match="too fast"):
        session.change(music=replace(session.settings.music, tempo=300.0))
    assert seen == [(120.0, 150.0), (150.0, 250.0), (150.0, 300.0)]
    # it is asked before the change is in force
    assert in_force == [120.0, 150.0, 150.0]
    assert session.settings.music.tempo == 150.0
    assert session.settings.sound.volume == 0.8
    assert session.version == 1


def test_a_guard_may_take_notices_back_while_it_is_asked(session: Session) -> None:
    session.notice("output", "warning", "lost.")
    session.guard(lambda before, after: session.notice("output", "warning", None))
    session.apply("set", {"music.seed": 3})
    assert session.state()["notices"] == []
    assert session.settings.music.seed == 3


def test_panic_ends_notes_and_not_the_music() -> None:
    panics: list[str] = []
    session = Session(LiveConfig(), lambda: panics.append(session.transport))
    session.apply("transport", {"action": "play"})
    version = session.version
    assert session.apply("transport", {"action": "panic"}) == {"transport": "playing"}
    assert panics == ["playing"]
    assert session.transport == "playing"
    assert session.version == version


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.none(), st.integers(), st.text())))
def test_nonsense_is_a_sentence(arguments: dict[str, Any]) -> None:
    session = Session(LiveConfig())
    for command in ("update_emotion", "transport"):
        with pytest.raises(KmidiError):
            session.apply(command, arguments)
    if arguments:
        with pytest.raises(KmidiError):
            session.apply("set", arguments)


def test_threads_never_see_half_a_change(session: Session) -> None:
    pairs = [(-1.0, 1.0), (1.0, -1.0)]
    torn: list[object] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            music = session.settings.music
            if (music.valence, music.arousal) not in [*pairs, (0.6, 0.2)]:
                torn.append(music)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(2000):
        valence, arousal = pairs[turn % 2]
        session.apply("update_emotion", {"valence": valence, "arousal": arousal})
    done.set()
    watcher.join()
    assert not torn
    assert session.version == 2000
