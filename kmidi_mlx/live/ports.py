"""MIDI ports by their names: those of the machine, TCP sockets, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.port_file import FileOutput
from kmidi_mlx.live.port_process import SystemInput, SystemOutput, list_system_ports
from kmidi_mlx.live.port_socket import SocketInput, SocketOutput
from kmidi_mlx.live.sinks import MidiOutput

__all__ = ["MidiInput", "list_ports", "open_input", "open_output", "why_no_ports"]

_SOCKET, _FILE = "socket:", "file:"
_WAYS = "`virtual`, socket:HOST:PORT, or a port's name or a part of it"


class MidiInput(Protocol):
    """Anything that MIDI messages come from; see `open_input`."""

    name: str

    def close(self) -> None:
        """Close the port."""


def list_ports() -> dict[str, list[str]]:
    """Name the ports of this machine; takes a tenth of a second or more, so not while drawing.

    Returns:
        `inputs` and `outputs`: names for `open_input` and `open_output`, with `virtual` where one
        can be made; none where the machine has no MIDI system or its system does not answer.
    """
    try:
        return list_system_ports()
    except (KmidiError, OSError):  # OSError: no process can be started
        return {"inputs": [], "outputs": []}


def why_no_ports() -> str | None:
    """Why this machine's ports cannot be named, and what to install; None: they can be."""
    try:
        list_system_ports()
    except (KmidiError, OSError) as error:
        return str(error)
    return None


def open_output(name: str, folder: Path | None = None) -> MidiOutput:
    """Open a port to play on; takes up to some seconds, then it never makes the player wait.

    Args:
        name: `virtual`: a new port named KmiDi, for other programs to choose;
            socket:HOST:PORT or socket:PORT: a program that listens there;
            file:PATH: a .mid file; otherwise a port of this machine, by its name or a part of it.
        folder: what PATH starts from and may not leave, for names that come over a network;
            None: any file.

    Raises:
        KmidiError: when it cannot be opened; the sentence says what there is.
    """
    if name.startswith(_SOCKET):
        return SocketOutput(name.removeprefix(_SOCKET))
    if name.startswith(_FILE):
        return FileOutput(_file_path(name.removeprefix(_FILE), folder))
    _require_name(name)
    return SystemOutput(name)


def open_input(
    name: str,
    on_message: Callable[[bytes, float], None],
    on_lost: Callable[[Exception], None],
) -> MidiInput:
    """Open a port to listen to.

    Args:
        name: `virtual`: a new port named KmiDi; socket:HOST:PORT or socket:PORT: listens there for
            programs that connect; otherwise a port of this machine, by its name or a part of it.
        on_message: called with each whole message (no running status, no system exclusive) and
            its moment of `time.monotonic()`, in a thread of the port; it must not wait.
        on_lost: called once, in that thread, with the reason, if the port goes away.

    Raises:
        KmidiError: when it cannot be opened; the sentence says what there is.
    """
    if name.startswith(_SOCKET):
        return SocketInput(name.removeprefix(_SOCKET), on_message, on_lost)
    if name.startswith(_FILE):
        raise KmidiError(f"{name} cannot be listened to; name a port: {_WAYS}.")
    _require_name(name)
    return SystemInput(name, on_message, on_lost)


def _file_path(text: str, folder: Path | None) -> Path:
    if not text or "\0" in text:
        raise KmidiError("file: names no file; write it as file:PATH.")
    if folder is None:
        return Path(text)
    path = (folder / text).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise KmidiError(f"file:{text} leaves the folder {folder}; name a file inside of it.")
    return path


def _require_name(name: str) -> None:
    # a null character cannot be an argument of a process
    if not name.strip() or "\0" in name:
        raise KmidiError(f"{name!r} names no port; there are {_WAYS}.")
