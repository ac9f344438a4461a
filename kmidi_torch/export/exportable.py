"""What is exported of each model: a module, and what its inputs and outputs are and mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kmidi_mlx.checkpoint_model import Loaded, label_temperature
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.emotion import EMOTION_DIM
from kmidi_mlx.spectocloud import CHANNELS
from kmidi_torch.export.modules import CloudPass, GeneratorStep, RecognizerPass
from kmidi_torch.export.quiet import quiet
from kmidi_torch.export.sampling_step import SamplingStep

__all__ = ["Axis", "Exportable", "Port", "cloud_pass", "generator_step", "recognizer_pass"]


@dataclass(frozen=True)
class Axis:
    """A length that the caller chooses with every call.

    Attributes:
        name: the same name is the same length in all inputs.
        step: the length is a multiple of this.
    """

    name: str
    step: int = 1

    @property
    def text(self) -> str:
        """The length as people write it."""
        return self.name if self.step == 1 else f"{self.step}*{self.name}"


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: of it.
        axes: its lengths.
        meaning: for the caller, one or two sentences without units left open.
        dtype: of its numbers.
        sample: what an input is filled with to trace the module.
    """

    name: str
    axes: tuple[int | Axis, ...]
    meaning: str
    dtype: torch.dtype = torch.float32
    sample: float = 0.0


@dataclass(frozen=True)
class Exportable:
    """A module that is ready to be traced.

    Attributes:
        module: in evaluation mode.
        about: what one call does.
        inputs, outputs: in the order of `module.forward`.
    """

    module: nn.Module
    about: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def traced(self) -> torch.export.ExportedProgram:
        """Trace the module; the lengths that have names stay free."""
        names = {axis for port in self.inputs for axis in port.axes if isinstance(axis, Axis)}
        # unlike numbers, and no 0 or 1: PyTorch keeps these two fixed, and lengths that agree equal
        lengths = {
            axis: axis.step * (3 + index)
            for index, axis in enumerate(sorted(names, key=lambda axis: axis.name))
        }
        free = {
            axis: torch.export.Dim(axis.name) * axis.step
            if axis.step > 1
            else torch.export.Dim(axis.name)
            for axis in names
        }
        samples, shapes = [], []
        for port in self.inputs:
            shape = [lengths[axis] if isinstance(axis, Axis) else axis for axis in port.axes]
            samples.append(torch.full(shape, port.sample, dtype=port.dtype))
            shapes.append(
                {at: free[axis] for at, axis in enumerate(port.axes) if isinstance(axis, Axis)}
            )
        with torch.no_grad(), quiet():
            program = torch.export.export(
                self.module, tuple(samples), dynamic_shapes=tuple(shapes), strict=False
            )
        for node in program.graph.nodes:
            # names of files on the machine that exports concern nobody else
            node.meta.pop("stack_trace", None)
        return program

    def describe(self) -> dict[str, Any]:
        """Return inputs and outputs as plain data."""
        return {
            side: {
                port.name: {
                    "type": str(port.dtype).removeprefix("torch."),
                    "shape": [axis if isinstance(axis, int) else axis.text for axis in port.axes],
                    "meaning": port.meaning,
                }
                for port in ports
            }
            for side, ports in (("inputs", self.inputs), ("outputs", self.outputs))
        }


_BATCH = Axis("batch")
_EVENTS = Axis("events")
_PLACES = Axis("places")


def generator_step(loaded: Loaded[Any, MidiGeneratorConfig], sampling: bool = False) -> Exportable:
    """The generator: reads events, with a cache that the caller keeps.

    Args:
        loaded: its weights decide the precision, that of the cache too.
        sampling: draw the next event as well.
    """
    model, config = loaded.model, loaded.config.model
    step = GeneratorStep(model)
    heads, cache = config.num_layers * config.num_heads, model.embedding.weight.dtype
    whole = torch.int32

    def kept(length: Axis) -> tuple[int | Axis, ...]:
        return (_BATCH, heads, length, config.head_dim)

    inputs = [
        Port(
            "ids",
            (_BATCH, _EVENTS),
            "Events to read: 0-387 as in the vocabulary, 388 the start of a piece. A prompt, or "
            "the last event alone.",
            whole,
        ),
        Port("emotion", (_BATCH, EMOTION_DIM), "Emotion vector; zeros: no emotion is asked for."),
        Port("chord", (_BATCH,), "Id of the chord in force; 0: unknown.", whole),
        Port("key", (_BATCH,), "Id of the key in force; 0: unknown.", whole),
        Port(
            "position",
            (1,),
            f"Position of the first event to read, from 0 to {step.positions - 1} less the events "
            "to read.",
            whole,
        ),
        Port(
            "slots",
            (_PLACES,),
            "Position of the event that each place of the cache holds, in any order; -1: none. "
            f"Events that are {step.limit} or more positions old are not looked at.",
            whole,
            -1,
        ),
        Port("past_keys", kept(_PLACES), "Cache: keys of the events in the places.", cache),
        Port("past_values", kept(_PLACES), "Cache: values of the events in the places.", cache),
    ]
    outputs = [
        Port(
            "logits",
            (_BATCH, _EVENTS, config.vocab_size),
            "Scores of the event after each that was read; a softmax makes them probabilities.",
        ),
        Port("new_keys", kept(_EVENTS), "Keys of the events read, to be put into places.", cache),
        Port("new_values", kept(_EVENTS), "Values of the events read, likewise.", cache),
    ]
    about = (
        "Reads piano events and tells what may come next. The cache stays with the caller: put "
        "new_keys and new_values into any places, oldest first overwritten, and write the events' "
        f"positions into slots. {step.limit - 1} places hold all that the model looks back on."
    )
    if not sampling:
        return Exportable(step.eval(), about, tuple(inputs), tuple(outputs))
    draw = SamplingStep(step)
    inputs += [
        Port("state", draw.state_shape, "State of the music before the event drawn; at first that "
             "of silence: rows 0 and 2 are -1, the others 0."),
        Port("noise", draw.noise_shape, "Gumbel noise, -log(-log(u)) of uniform u; zeros: the "
             "likeliest event."),
        Port("knobs", draw.knobs_shape, "Settings: " + ", ".join(draw.knob_names) + "."),
    ]  # fmt: skip
    outputs += [
        Port("event", (1,), "The event drawn, always playable.", whole),
        Port("new_state", draw.state_shape, "State of the music after the event drawn."),
    ]
    about += (
        " It also draws the next event after the last one read: of a batch of two, the second row "
        "is the model without conditions, for guidance."
    )
    return Exportable(draw.eval(), about, tuple(inputs), tuple(outputs))


def cloud_pass(loaded: Loaded[Any, Any], points: int) -> Exportable:
    """Spectocloud for a number of points.

    Raises:
        KmidiError: if there are not so many points.
    """
    config = loaded.config.model
    inputs = (
        Port(
            "windows",
            (_BATCH, config.mel_bands, config.window_frames),
            "Log-compressed mel spectrogram in [0, 1], newest frame last.",
        ),
        Port("features", (_BATCH, config.feature_dim), "Features of the notes, in [-1, 1]."),
        Port("emotion", (_BATCH, config.emotion_dim), "Emotion vector."),
    )
    cloud = Port(
        "cloud",
        (_BATCH, points, len(CHANNELS)),
        f"Points: {', '.join(CHANNELS)}; the first three in [-1, 1], the others in [0, 1].",
    )
    about = "Draws the cloud of one moment of music. The same point is always in the same row."
    return Exportable(CloudPass(loaded.model, points).eval(), about, inputs, (cloud,))


def recognizer_pass(loaded: Loaded[Any, Any]) -> Exportable:
    """The recogniser for whole clips."""
    model, config = loaded.model, loaded.config.model
    module = RecognizerPass(model, label_temperature(loaded))
    inputs = (
        Port(
            "frames",
            (_BATCH, Axis("patches", config.patch_frames), model.bands),
            "Mel bands and semitones of the sound in [0, 1], oldest frame first; what is beyond "
            "counts is not looked at.",
        ),
        Port(
            "counts",
            (_BATCH,),
            f"How many frames of each clip count, {config.patch_frames} or more.",
            torch.int32,
            config.patch_frames,
        ),
    )
    ports = {
        "numbers": Port(
            "numbers", (_BATCH, 3), "Valence and arousal in [-1, 1], intensity in [0, 1]."
        ),
        "probabilities": Port(
            "probabilities",
            (_BATCH, len(config.labels)),
            f"Calibrated probabilities of {', '.join(config.labels)}.",
        ),
        "cues": Port("cues", (_BATCH, config.num_cues), "Musical cues, standardised."),
    }
    about = "Recognises the emotion of clips of music."
    outputs = tuple(ports[name] for name in module.outputs)
    return Exportable(module.eval(), about, inputs, outputs)
