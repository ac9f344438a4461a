"""The functions of a Core ML package: fixed shapes, the precision of every number at the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    SpectocloudConfig,
)
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud import DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_torch.export.coreml.graph import run_module
from kmidi_torch.export.exportable import (
    Axis,
    Exportable,
    Port,
    cloud_pass,
    generator_step,
    recognizer_pass,
)
from kmidi_torch.export.request import Request
from kmidi_torch.export.ring import StepRing
from kmidi_torch.export.samples import (
    EMOTION,
    Inputs,
    cloud_inputs,
    piece_ids,
    recognizer_inputs,
)
from kmidi_torch.models.kv_cache import REBASE_CONTEXTS

__all__ = ["ADVICE", "MAIN", "PREFILL_EVENTS", "Call", "Function", "functions_of", "samples_of"]

#: Events that `prefill` reads at once.
PREFILL_EVENTS = 64
#: Name of the only function of a package.
MAIN = "main"
_LONGEST_SECONDS = 120.0

#: Which compute units to choose, by model, and why; said of what is known, not measured.
ADVICE = {
    "midi_generator": (
        "compute units: .cpuAndGPU. Norms (fp32) and positions (int32) are nothing for the Neural "
        "Engine, so .all would carry numbers to and fro in every block. Keep the cache in "
        "MLMultiArrays on IOSurfaces so that it is not copied."
    ),
    "spectocloud": (
        "compute units: .cpuAndGPU. Norms and the measures of the sound (logarithms, quotients) "
        "are fp32, which the Neural Engine lacks; try .all where the GPU is busy drawing."
    ),
    "emotion_recognizer": (
        "compute units: .cpuOnly. The network is small and its sums are fp32; bringing it to the "
        "GPU costs more than it saves."
    ),
}


@dataclass(frozen=True)
class Function:
    """A function of a package.

    Attributes:
        name: of it, `main` where it is the only one.
        exportable: module, inputs and outputs with fixed shapes.
    """

    name: str
    exportable: Exportable


@dataclass(frozen=True)
class Call:
    """A call of a function with real inputs.

    Attributes:
        function: name of it.
        when: what is called so in a report.
        inputs: by name; floating-point numbers in fp32.
    """

    function: str
    when: str
    inputs: Inputs


def functions_of(request: Request, multifunction: bool) -> list[Function]:
    """Return what a package of a model consists of, the function that runs by default last.

    Args:
        request: with the options `points` and `seconds`; None: the usual.
        multifunction: whether a package may hold more than one function.

    Raises:
        KmidiError: if an option is of another model, or asks for what there is not.
    """
    options, config = request.options, request.loaded.config
    _refuse(options.points, "--points", isinstance(config, SpectocloudConfig), "spectocloud")
    recognizer = isinstance(config, EmotionRecognizerConfig)
    _refuse(options.seconds, "--seconds", recognizer, "emotion_recognizer")
    if isinstance(config, MidiGeneratorConfig):
        step = generator_step(request.loaded)
        places = {"batch": 1, "places": config.model.context_length - 1}
        single = _fixed(step, {**places, "events": 1})
        if not multifunction:
            return [Function(MAIN, single)]
        prefill = _fixed(step, {**places, "events": PREFILL_EVENTS})
        return [Function("prefill", prefill), Function("step", single)]
    if isinstance(config, SpectocloudConfig):
        points = DEFAULT_POINTS if options.points is None else options.points
        if not 1 <= points <= LEVELS_OF_DETAIL[-1]:
            raise KmidiError(f"--points {points}: give a number from 1 to {LEVELS_OF_DETAIL[-1]}.")
        return [Function(MAIN, _fixed(cloud_pass(request.loaded, points), {"batch": 1}))]
    frames = _clip_frames(config, options.seconds)
    patches = frames // config.model.patch_frames * config.model.patch_frames
    lengths = {"batch": 1, "patches": patches}
    return [Function(MAIN, _fixed(recognizer_pass(request.loaded), lengths))]


def _refuse(value: object, flag: str, fits: bool, model: str) -> None:
    if value is not None and not fits:
        raise KmidiError(f"{flag} is an option of --model {model} only.")


def _clip_frames(config: EmotionRecognizerConfig, seconds: float | None) -> int:
    data, model = config.data, config.model
    if seconds is None:
        seconds = data.clip_seconds
    frames_a_second = data.sample_rate / data.hop_length
    # asked this way round, NaN is refused too
    if not model.patch_frames / frames_a_second <= seconds <= _LONGEST_SECONDS:
        raise KmidiError(
            f"--seconds {seconds:g}: a clip has at least {model.patch_frames / frames_a_second:g} "
            f"and at most {_LONGEST_SECONDS:g} s."
        )
    return round(seconds * frames_a_second)


def _fixed(exportable: Exportable, lengths: dict[str, int]) -> Exportable:
    """The same with a number for every length that has a name."""

    def fix(port: Port) -> Port:
        axes = tuple(lengths[axis.name] if isinstance(axis, Axis) else axis for axis in port.axes)
        return replace(port, axes=axes)

    return replace(
        exportable,
        inputs=tuple(fix(port) for port in exportable.inputs),
        outputs=tuple(fix(port) for port in exportable.outputs),
    )


def samples_of(request: Request, functions: list[Function]) -> list[Call]:
    """Return calls with real inputs: music that is shipped, its sound, and for the generator a
    cache that was filled from it, empty at first, then full where positions end."""
    config = request.loaded.config
    if isinstance(config, MidiGeneratorConfig):
        return _generator_calls(config, functions)
    if isinstance(config, SpectocloudConfig):
        rows = cloud_inputs(2)
    else:
        frames = functions[0].exportable.inputs[0].axes[1]
        assert isinstance(frames, int)
        rows = recognizer_inputs(config, 2, frames)
    return [
        Call(
            MAIN, f"sample {row + 1}", {name: value[row : row + 1] for name, value in rows.items()}
        )
        for row in range(2)
    ]


def _generator_calls(config: MidiGeneratorConfig, functions: list[Function]) -> list[Call]:
    """Calls in the order in which a player makes them."""
    by_length = {function.exportable.inputs[0].axes[1]: function for function in functions}
    chunks = tuple(sorted((n for n in by_length if isinstance(n, int)), reverse=True))
    calls: list[Call] = []
    when = "from the start"

    def run(inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        function = by_length[inputs["ids"].shape[1]]
        kept = {name: value.copy() for name, value in inputs.items()}
        calls.append(Call(function.name, f"{function.name}, {when}", kept))
        outputs = [port.name for port in function.exportable.outputs]
        return run_module(function.exportable.module, outputs, kept)

    model = config.model
    places = model.context_length - 1
    conditions = {
        "emotion": encode_emotion(EMOTION)[None],
        "chord": np.array([5], np.int32),
        "key": np.array([3], np.int32),
    }
    ids = piece_ids(4 * PREFILL_EVENTS)[None]
    ring = StepRing(run, model, chunks=chunks, places=places)
    first = sum(chunks) + 2
    ring.read(ids[:, :first], conditions)
    # every place is full, and the next events cross the end of the positions, where they are
    # moved back
    when = "places full"
    ring.position = REBASE_CONTEXTS * model.context_length - chunks[0]
    ring.slots = (ring.position - places + np.arange(places)).astype(np.int32)
    rng = np.random.default_rng(0)
    held = rng.integers(min(first, places), size=places)
    ring.keys, ring.values = ring.keys[:, :, held], ring.values[:, :, held]
    ring.read(ids[:, first : first + sum(chunks) + 1], conditions)
    return calls
