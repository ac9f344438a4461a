"""The loss of any of the networks on held-out data, batch by batch, so that two can be compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.data.batches import MidiBatches
from kmidi_mlx.data.cloud_batches import CloudBatches
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.emotion_task import HostEmotionTask, open_batches, open_recordings
from kmidi_mlx.runs.midi_task import HostMidiTask
from kmidi_mlx.spectocloud import DEFAULT_POINTS
from kmidi_mlx.training.cloud_losses import cloud_losses
from kmidi_mlx.training.cloud_task import clouds_of
from kmidi_mlx.training.emotion_task import losses_of
from kmidi_mlx.training.midi_task import cross_entropy_of
from kmidi_mlx.training.step import Batch, to_arrays

__all__ = ["HeldOut", "Loss", "compare", "open_held_out"]

#: Windows, clouds or clips that are looked at where nobody says how many.
DEFAULT_LIMITS = {"midi_generator": 64, "spectocloud": 80, "emotion_recognizer": 256}

_CLOUD_NAMES = ("windows", "features", "emotion", "clouds", "point_indices", "weights")
_WINDOWS_AT_ONCE, _CLOUDS_AT_ONCE = 4, 8
SHIPPED = "the pieces that come with kmidi (val side)"

# summed losses of a batch, last of all the weight they were summed over
Sums = Callable[[nn.Module, Batch], tuple[mx.array, ...]]


@dataclass(frozen=True)
class Loss:
    """A loss of two models on the same data.

    Attributes:
        unit: what it is.
        before, after: of the two.
        growth: after - before.
        standard_error: of the growth, over batches; None where there is one batch only.
    """

    unit: str
    before: float
    after: float
    growth: float
    standard_error: float | None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out data of a run, and what is measured on it.

    Attributes:
        data: where it comes from, in words.
        units: what the losses are; the first one is the one that counts.
        batches: as `to_arrays` takes them.
        sums: losses of a batch.
    """

    data: str
    units: tuple[str, ...]
    batches: Sequence[dict[str, NDArray[Any]]]
    sums: Sums

    def measure(
        self, model: nn.Module, on_progress: Callable[[int], None] = lambda batches: None
    ) -> NDArray[np.float64]:
        """Return summed losses and the weight of every batch, `(batches, losses + 1)`.

        Args:
            model: the network.
            on_progress: called with 1 after each batch.
        """
        compiled = mx.compile(lambda batch: self.sums(model, batch), inputs=[model.state])
        rows = []
        for batch in self.batches:
            rows.append([value.item() for value in compiled(to_arrays(batch))])
            on_progress(1)
        return np.array(rows, np.float64)


def compare(
    units: Sequence[str], before: NDArray[np.float64], after: NDArray[np.float64]
) -> list[Loss]:
    """Compare what `HeldOut.measure` returned for two models.

    Args:
        units: of the losses.
        before, after: `(batches, losses + 1)`.
    """
    weight = before[:, -1]
    losses = []
    for column, unit in enumerate(units):
        one, two = (float(rows[:, column].sum() / weight.sum()) for rows in (before, after))
        # a batch counts as much as its weight
        grown = (after[:, column] - before[:, column]) / weight.mean()
        error = float(grown.std(ddof=1) / len(grown) ** 0.5) if len(grown) > 1 else None
        losses.append(Loss(unit, one, two, two - one, error))
    return losses


def open_held_out(config: RunConfig, data: Path | None = None, limit: int | None = None) -> HeldOut:
    """Read the val side of prepared data.

    Args:
        config: of the model's run.
        data: as `kmidi prepare` makes it, for a recogniser a manifest; None: what the run was
            trained on if it is still there, and for a generator else the pieces that come with
            kmidi.
        limit: windows (events: times `data.sequence_length`), clouds or clips to look at, rounded
            up to whole batches; None: `DEFAULT_LIMITS`.

    Raises:
        KmidiError: when there is no such data, or it cannot be used.
    """
    limit = limit or DEFAULT_LIMITS[config.name]
    if isinstance(config, MidiGeneratorConfig):
        return _music(config, data, limit)
    if isinstance(config, SpectocloudConfig):
        return _clouds(config, data, limit)
    if isinstance(config, EmotionRecognizerConfig):
        return _recordings(config, data, limit)
    raise KmidiError(f"nothing is known of how a {config.name!r} is judged.")


def _music(config: MidiGeneratorConfig, data: Path | None, limit: int) -> HeldOut:
    def read(folder: Path, where: str) -> HeldOut:
        batches = MidiBatches(
            ShardReader(folder), "val", config.data, _WINDOWS_AT_ONCE, 0, augment=False
        )
        staged = _staged(batches, HostMidiTask.names, limit)
        return HeldOut(where, ("nats per event",), staged, sums)

    def sums(model: nn.Module, batch: Batch) -> tuple[mx.array, ...]:
        return cross_entropy_of(model, batch, 0.0)

    folder = data or _present(config.data.path)
    if folder:
        return read(folder, str(folder))
    with (
        tempfile.TemporaryDirectory() as temporary,
        as_file(files("kmidi_mlx") / "assets") as assets,
    ):
        made = Path(temporary) / "data"
        prepare_midi([assets / "pop909" / "manifest.jsonl"], made, licence="MIT", workers=1)
        return read(made, SHIPPED)


def _clouds(config: SpectocloudConfig, data: Path | None, limit: int) -> HeldOut:
    folder = data or _present(config.data.path)
    if not folder:
        raise _missing(config.data.path, "made by `kmidi prepare spectocloud`")
    batches = CloudBatches(CloudReader(folder), "val", _CLOUDS_AT_ONCE, 0, DEFAULT_POINTS)

    def sums(model: nn.Module, batch: Batch) -> tuple[mx.array, ...]:
        losses, weights = (
            cloud_losses(clouds_of(model, batch), batch["clouds"], config.loss),
            batch["weights"],
        )
        parts = (losses.chamfer, losses.total(config.loss))
        return *(mx.sum(part * weights) for part in parts), mx.sum(weights)

    staged = _staged(batches, _CLOUD_NAMES, limit)
    return HeldOut(str(folder), ("Chamfer distance", "loss of training"), staged, sums)


def _recordings(config: EmotionRecognizerConfig, data: Path | None, limit: int) -> HeldOut:
    manifest = data or _present(config.data.manifest)
    if not manifest:
        raise _missing(config.data.manifest, "a manifest of recordings")
    config = replace(config, data=replace(config.data, manifest=str(manifest)))
    recordings = open_recordings(config).standardised_cues()
    batches = open_batches(config, recordings, "val", 2 * config.model.dim)

    def sums(model: nn.Module, batch: Batch) -> tuple[mx.array, ...]:
        return losses_of(model, batch, config, 0.0)

    staged = _staged(batches, HostEmotionTask.names, limit)
    return HeldOut(str(manifest), ("loss per clip",), staged, sums)


def _staged(batches: Any, names: Sequence[str], limit: int) -> list[dict[str, NDArray[Any]]]:
    count = min(-(-limit // batches.batch_size), batches.steps_per_epoch())
    made = (batches.batch(index) for index in range(count))
    return [{name: getattr(batch, name) for name in names} for batch in made]


def _present(path: str) -> Path | None:
    return Path(path) if path and Path(path).exists() else None


def _missing(path: str, what: str) -> KmidiError:
    gone = f"{path} is not there any more" if path else "the run does not say what it learnt from"
    return KmidiError(f"{gone}; give --data, {what}.")
