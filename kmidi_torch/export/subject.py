"""What one export is about: the model to trace, how it is proved, what the file says of itself."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import kmidi_mlx
from kmidi_mlx.checkpoint import FORMAT_VERSION
from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.config import EmotionRecognizerConfig, SamplingConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud import DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_torch.export import proof
from kmidi_torch.export.exportable import Exportable, cloud_pass, generator_step, recognizer_pass
from kmidi_torch.export.precision import Precision
from kmidi_torch.export.report import Difference
from kmidi_torch.export.request import Request
from kmidi_torch.export.ring import Run
from kmidi_torch.export.samples import Inputs

__all__ = ["Subject", "add_subject_arguments", "check_subject"]

# how a recogniser's frames are made
_HEARING = ("sample_rate", "n_fft", "hop_length", "semitone_n_fft")


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--points` and `--sampling`."""
    parser.add_argument(
        "--points",
        type=int,
        metavar="N",
        help=f"spectocloud: points of a cloud, to {LEVELS_OF_DETAIL[-1]}; default {DEFAULT_POINTS}",
    )
    parser.add_argument(
        "--sampling",
        action="store_true",
        help="midi_generator: draw the next event in the graph too; best-sampling.*",
    )


def check_subject(args: argparse.Namespace) -> None:
    """Refuse flags that are of another model.

    Raises:
        KmidiError: then.
    """
    for flag, given, model in (
        ("--points", args.points is not None, "spectocloud"),
        ("--sampling", args.sampling, "midi_generator"),
    ):
        if given and args.model != model:
            raise KmidiError(f"{flag} is for --model {model}, not for {args.model}.")
    if args.points is not None and not 1 <= args.points <= LEVELS_OF_DETAIL[-1]:
        raise KmidiError(f"--points {args.points}: give a number from 1 to {LEVELS_OF_DETAIL[-1]}.")


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        request: what was asked for; its model stays in fp32, to compare with.
        precision: of the export.
        exportable: what is traced.
    """

    request: Request
    precision: Precision
    exportable: Exportable

    @classmethod
    def of(cls, request: Request, precision: Precision) -> Subject:
        """Make the module to trace, of a copy of the weights where they change their type."""
        loaded = request.loaded
        if precision.weights != torch.float32:
            model = copy.deepcopy(loaded.model).to(precision.weights)
            loaded = replace(loaded, model=model)
        return cls(request, precision, _exportable(loaded, request))

    @property
    def _sampling(self) -> bool:
        return bool(self.request.options.sampling)

    def prove(self, run: Run) -> list[Difference]:
        """Compare an export with the model, on all that is said of it."""
        loaded, precision = self.request.loaded, self.precision
        if self.request.model == "spectocloud":
            points = _points(self.request)
            return proof.prove_clouds(run, loaded, points, precision)
        if self.request.model == "emotion_recognizer":
            return proof.prove_recognizer(run, loaded, precision)
        step: Run = proof.Drawing(run, SamplingConfig()) if self._sampling else run
        differences = proof.prove_step(step, loaded, precision)
        if self._sampling:
            differences += proof.prove_draws(run, loaded, precision)
        return differences

    def live_inputs(self) -> tuple[Inputs, str]:
        """Return inputs of one call of what a live player calls, and what they are, in words."""
        inputs, words = proof.live_inputs(self.request.loaded, self.precision.cache)
        if self._sampling:
            inputs |= proof.Drawing.inputs(SamplingConfig())
            words += ", drawn"
        return inputs, words

    def prove_live(self, run: Run, when: str) -> list[Difference]:
        """Compare one call of what a live player calls; what is drawn is left out."""
        return self.prove_once(run, self.live_inputs()[0], when)

    def prove_once(self, run: Run, inputs: Inputs, when: str) -> list[Difference]:
        """Compare one call; what is drawn is left out."""
        exact = _exportable(self.request.loaded, self.request)
        tensors = [torch.from_numpy(inputs[port.name]).to(port.dtype) for port in exact.inputs]
        with torch.no_grad():
            outputs = exact.module(*tensors)
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        expected = {
            port.name: value.numpy()
            for port, value in zip(exact.outputs, found, strict=True)
            if port.name not in ("event", "new_state")
        }
        return self.precision.judge(expected, run(inputs), when)

    def metadata(self, differences: Sequence[Difference] = ()) -> dict[str, Any]:
        """Return what the file says of itself, as JSON values.

        Args:
            differences: that were measured.
        """
        config, known = self.request.loaded.config, self.request.loaded.metadata
        told: dict[str, Any] = {
            name: known[name]
            for name in ("step", "metric", "synthetic", "data_licences", "data_labels", "adapters")
            if name in known
        }
        if isinstance(config, EmotionRecognizerConfig):
            told["hearing"] = {name: getattr(config.data, name) for name in _HEARING}
        return {
            "model": self.request.model,
            "about": self.exportable.about,
            **self.exportable.describe(),
            "config": asdict(config.model),
            **told,
            "precision": self.precision.name,
            "differences": {each.what: each.largest for each in differences},
            "kmidi_version": kmidi_mlx.__version__,
            "format_version": FORMAT_VERSION,
        }

    def notes(self, *more: str) -> list[str]:
        """Return sentences for the person."""
        notice = self.request.loaded.notice
        return [*more, *([] if notice is None else [notice])]


def _points(request: Request) -> int:
    return int(request.options.points or DEFAULT_POINTS)


def _exportable(loaded: Loaded[Any, Any], request: Request) -> Exportable:
    loaded.model.requires_grad_(False)
    if request.model == "midi_generator":
        return generator_step(loaded, request.options.sampling)
    if request.model == "spectocloud":
        return cloud_pass(loaded, _points(request))
    return recognizer_pass(loaded)
