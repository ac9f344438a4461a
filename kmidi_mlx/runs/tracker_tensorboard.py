"""Runs in TensorBoard: event files in the checkpoint folder, written with its own package alone."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import (
    event_pb2,
    summary_pb2,
    tensor_pb2,
    tensor_shape_pb2,
    types_pb2,
)
from tensorboard.plugins.audio import metadata as audio_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from kmidi_mlx.runs.tracker import Tracker, grouped

FOLDER = "tensorboard"


def complaint() -> str | None:
    """Return what keeps it from working: nothing, once it could be imported."""
    return None


def make_tracker(folder: Path, project: str) -> Tracker:
    """Make a tracker of a run that writes into its checkpoint folder."""
    return TensorBoardTracker(folder / FOLDER)


class TensorBoardTracker(Tracker):
    """Appends events to a file of its own; every process of a run begins a new one.

    The first event tells readers after which step the run goes on, and they drop what earlier files
    say of later steps. An event is in the file whole or not at all: one cut short by a full disk
    would hide all that follow.

    Args:
        folder: of the event files; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # readers take files in the order of their names
        started = time.time()
        name = f"events.out.tfevents.{int(started):010d}.{int(started % 1 * 1e6):06d}"
        self._path = folder / f"{name}.{socket.gethostname()}.{os.getpid()}"

    def start(self, about: dict[str, Any], step: int) -> None:
        """Begin the file; raises OSError as `log` does."""
        self._append(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        begins = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # what was reported after the step is reported once more
        self._append(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=begins))
        lines = json.dumps(about, indent=2).splitlines()
        self._add(step, _text("run", "\n".join(f"    {line}" for line in lines)))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append numbers.

        Raises:
            OSError: when the system refuses, for example because the disk is full.
        """
        self._add(
            step,
            *(
                summary_pb2.Summary.Value(tag=grouped(name), simple_value=value)
                for name, value in values.items()
                if isinstance(value, int | float)
            ),
        )

    def add_samples(self, step: int, files: Sequence[Path]) -> None:
        """Append pictures and sounds; raises as `log` does."""
        for file in files:
            if file.suffix == ".png":
                self._add(step, _picture("samples/picture", file.read_bytes()))
            elif file.suffix == ".wav":
                self._add(step, _sound("samples/sound", file.read_bytes()))

    def finish(self, reason: str) -> None:
        """Nothing is open; how the run ended is a line of text."""
        self._append(
            event_pb2.Event(
                wall_time=time.time(), summary=summary_pb2.Summary(value=[_text("end", reason)])
            )
        )

    def _add(self, step: int, *values: summary_pb2.Summary.Value) -> None:
        summary = summary_pb2.Summary(value=values)
        self._append(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _append(self, event: event_pb2.Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(record.getvalue()) < len(record.getvalue()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise


def _text(tag: str, text: str) -> summary_pb2.Summary.Value:
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    return summary_pb2.Summary.Value(
        tag=tag,
        metadata=summary_pb2.SummaryMetadata(plugin_data=plugin),
        tensor=tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()]),
    )


def _picture(tag: str, png: bytes) -> summary_pb2.Summary.Value:
    # the first chunk of the format: its length, "IHDR", width, height
    width, height = struct.unpack(">II", png[16:24])
    image = summary_pb2.Summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=png
    )
    return summary_pb2.Summary.Value(tag=tag, image=image)


def _sound(tag: str, wav: bytes) -> summary_pb2.Summary.Value:
    # as a tensor of sound and label: only so does every reader know that it is WAV
    shape = tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in (1, 2)]
    )
    return summary_pb2.Summary.Value(
        tag=tag,
        metadata=audio_metadata.create_summary_metadata(
            display_name="", description="", encoding=audio_metadata.Encoding.Value("WAV")
        ),
        tensor=tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[wav, b""]
        ),
    )
