"""Finished pieces that people ask for while the music plays, written in the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.music.event_stream import EventStream
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.music.piece import PieceWriter

__all__ = ["Piece", "Pieces"]


@dataclass(eq=False)
class Piece:
    """A finished piece that somebody asks for while the music plays.

    Attributes:
        seconds: its length.
        emotion: asked for.
        seed: of what is drawn.
        written: gets the notes.
    """

    seconds: float
    emotion: Emotion
    seed: int
    written: Future[Notes] = field(default_factory=Future)


class Pieces:
    """A queue of pieces, written one after the other by one thread.

    Args:
        make_stream: a fresh stream for a piece; called by that thread.
    """

    def __init__(self, make_stream: Callable[[Piece], EventStream[Any]]) -> None:
        self._make_stream = make_stream
        self._waiting: deque[Piece] = deque()
        self._writer: tuple[Piece, PieceWriter] | None = None

    def add(self, piece: Piece) -> None:
        """Have a piece written; any thread may call."""
        self._waiting.append(piece)

    def write(self, deadline: float) -> None:
        """Go on writing until a moment, of `time.monotonic()`."""
        while self._writer or self._waiting:
            if self._writer is None:
                piece = self._waiting.popleft()
                if not piece.written.set_running_or_notify_cancel():
                    continue
                self._writer = piece, PieceWriter(self._make_stream(piece), piece.seconds)
            piece, writer = self._writer
            while not writer.done:
                if time.monotonic() >= deadline:
                    return
                writer.write()
            piece.written.set_result(decode(writer.events()))
            self._writer = None

    def refuse(self) -> None:
        """Let nobody wait for a piece that will not be written any more."""
        if self._writer is not None:
            # what is under way can no longer be cancelled by its asker's side
            self._writer[0].written.set_exception(CancelledError())
            self._writer = None
        while self._waiting:
            with suppress(IndexError):  # two threads may refuse at once
                self._waiting.popleft().written.cancel()
