"""Ports, sound card and what is listened to: opened, changed and closed as the settings say.

A change is all or nothing: what is new is opened first, and only when all of it is there is what is
old given back. A device that goes away by itself is told to people and no longer asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.keyboard import KeyboardInput
from kmidi_mlx.live.listening import FileListening, Listening, listen_to
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.ports import MidiInput, open_input, open_output
from kmidi_mlx.live.session import Session, Settings
from kmidi_mlx.live.sinks import MidiSink, Sink
from kmidi_mlx.live.sound import SoundEngine, SoundFan
from kmidi_mlx.live.sound_device import SoundDevice

__all__ = ["Devices", "about_devices"]

# socket:PORT names no host
_THIS_MACHINE = ("", "127.0.0.1", "localhost", "::1", "[::1]")


class Devices:
    """Holds what the settings name open.

    Args:
        session: whose settings they are.
        player: plays on the MIDI output.
        sound: plays on the sound card, and mixes in a file that is listened to.
        fan: what is heard.
        folder: that files named by clients have to be in.
        started_with: settings that the application was started with: what they name, a file to
            listen to or another machine to play on, may be outside of folder and machine.
        on_listen: told what the cloud is to hear; None: the music.
        on_keys: called when a person has played.

    Attributes:
        keyboard: what a person plays.
    """

    def __init__(
        self,
        session: Session,
        player: Player,
        sound: SoundEngine,
        fan: SoundFan,
        folder: Path,
        started_with: Settings,
        on_listen: Callable[[SoundFan | None], None],
        on_keys: Callable[[], None],
    ) -> None:
        self.keyboard = KeyboardInput()
        self._session = session
        self._player = player
        self._sound = sound
        self._fan = fan
        self._folder = folder
        self._listens_outside = started_with.cloud.listen
        self._plays_outside = started_with.ports.output
        self._on_listen = on_listen
        self._on_keys = on_keys
        self._output: MidiSink | None = None
        self._input: MidiInput | None = None
        self._card: SoundDevice | None = None
        self._listening: Listening | None = None
        # what is lost is told by threads that must not wait for the session
        self._care = ThreadPoolExecutor(1, "kmidi care")

    def change(self, before: Settings | None, after: Settings) -> None:
        """Open and close what differs between settings.

        Args:
            before: in force until now; None: nothing is open yet.
            after: in force from now on.

        Raises:
            KmidiError: if something cannot be opened; everything is as it was then.
        """
        was, wanted = before or Settings(), after
        commits: list[Callable[[], None]] = []
        with ExitStack() as opened:
            if was.ports.output != wanted.ports.output:
                output = self._open_output(wanted)
                if output is not None:
                    opened.callback(output.close)
                commits.append(lambda: self._set_output(output))
            elif was.ports.channel != wanted.ports.channel:
                commits.append(lambda: self._set_channel(wanted.ports.channel - 1))
            if was.ports.input != wanted.ports.input:
                keys = self._open_input(wanted.ports.input)
                if keys is not None:
                    opened.callback(keys.close)
                commits.append(lambda: self._set_input(keys))
            if was.sound.device != wanted.sound.device:
                card = self._open_card(wanted.sound.device)
                if card is not None:
                    opened.callback(card.close)
                commits.append(lambda: self._set_card(card))
            if was.cloud.listen != wanted.cloud.listen:
                listening = self._open_listening(wanted.cloud.listen)
                if listening is not None:
                    opened.callback(listening.close)
                commits.append(lambda: self._set_listening(listening))
            opened.pop_all()
        for commit in commits:
            commit()
        self._sound.volume = wanted.sound.volume
        self._sound.set_polyphony(wanted.sound.polyphony)

    def lost_sink(self, sink: Sink, error: Exception) -> None:
        """Take note that the player has lost a sink; called by the player's thread."""
        if sink is self._output:
            self._output = None
            self._forget("output", "ports.output", f"{sink.name} was lost: {error}")

    def later(self, action: Callable[[], object]) -> None:
        """Have something done soon by a thread that may wait; any thread may call."""
        with suppress(RuntimeError):  # everything is being closed
            self._care.submit(action)

    def close(self) -> None:
        """Close everything."""
        self._care.shutdown(wait=False, cancel_futures=True)
        takers: tuple[Callable[[None], None], ...] = (
            self._set_input, self._set_listening, self._set_card, self._set_output,
        )  # fmt: skip
        for take in takers:
            with suppress(Exception):  # one device that fails must not keep the others open
                take(None)

    def _open_output(self, settings: Settings) -> MidiSink | None:
        ports = settings.ports
        if not ports.output:
            return None
        host = _socket_host(ports.output)
        if host is not None and host not in _THIS_MACHINE and ports.output != self._plays_outside:
            raise KmidiError(
                f"ports.output: {host[:60]} is another machine; only one that kmidi was started "
                "with can be played on."
            )
        return MidiSink(open_output(ports.output, self._folder), ports.channel - 1)

    def _set_output(self, output: MidiSink | None) -> None:
        before, self._output = self._output, output
        if before is not None:
            self._player.remove(before)
        if output is not None:
            # who plays a keyboard into a programme hears it there already
            self._player.add(output, keys=False)
        self._session.notice("output", "warning", None)

    def _set_channel(self, channel: int) -> None:
        """Play on another channel of the same port, which stays open for who listens there."""
        if self._output is not None:
            self._output.channel = channel

    def _open_input(self, name: str) -> MidiInput | None:
        if not name:
            return None

        def hear(message: bytes, moment: float) -> None:
            self.keyboard.receive(message, moment)
            self._on_keys()

        def lost(error: Exception) -> None:
            self._let_go()
            self._forget("input", "ports.input", f"the keyboard was lost: {error}")

        return open_input(name, hear, lost)

    def _set_input(self, keys: MidiInput | None) -> None:
        before, self._input = self._input, keys
        if before is not None:
            before.close()
            self._let_go()
        self._session.notice("input", "warning", None)

    def _let_go(self) -> None:
        self.keyboard.release_all(time.monotonic())
        self._on_keys()

    def _open_card(self, name: str) -> SoundDevice | None:
        if not name:
            return None
        return SoundDevice(
            self._fan,
            name,
            lambda error: self._forget("card", "sound.device", f"the sound card was lost: {error}"),
        )

    def _set_card(self, card: SoundDevice | None) -> None:
        before, self._card = self._card, card
        if before is not None:
            before.close()
        self._session.notice("card", "warning", None)

    def _open_listening(self, name: str) -> Listening | None:
        if not name:
            return None
        kind = name.partition(":")[0]
        if kind != "input" and name != self._listens_outside:
            path = (self._folder / name).resolve()
            if not path.is_relative_to(self._folder.resolve()):
                raise KmidiError(
                    f"cloud.listen: {name[:60]} is not in the folder {self._folder}; only files "
                    "there can be chosen while it plays."
                )
            name = str(path)
        return listen_to(
            name,
            lambda error: self._forget("listening", "cloud.listen", f"nothing is heard: {error}"),
        )

    def _set_listening(self, listening: Listening | None) -> None:
        before, self._listening = self._listening, listening
        self._sound.beside = listening if isinstance(listening, FileListening) else None
        self._on_listen(listening.fan if listening is not None else None)
        if before is not None:
            before.close()
        self._session.notice("listening", "warning", None)

    def _forget(self, topic: str, option: str, text: str) -> None:
        """Ask no more for a device that is gone, and say so; any thread may call."""

        def tell() -> None:
            with suppress(KmidiError):
                self._session.apply("set", {option: ""})
            self._session.notice(topic, "warning", text)

        self.later(tell)


def _socket_host(name: str) -> str | None:
    """Host of a socket:HOST:PORT; None for other ports."""
    kind, _, rest = name.partition(":")
    return rest.rpartition(":")[0] if kind == "socket" else None


def about_devices() -> dict[str, Any]:
    """List what can be chosen: MIDI ports and sound cards."""
    from kmidi_mlx.live.ports import list_ports
    from kmidi_mlx.live.sound_device import list_devices

    cards = list_devices()
    return {
        **list_ports(),
        "sound_outputs": cards["outputs"],
        "sound_inputs": cards["inputs"],
    }
