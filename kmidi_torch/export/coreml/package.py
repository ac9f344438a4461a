"""What a Core ML package says of itself in Xcode and to programs: author, licence, meanings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kmidi_mlx
from kmidi_mlx.checkpoint_model import Loaded
from kmidi_torch.export.coreml.functions import Function

__all__ = ["describe"]

_MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
_PRACTICE = " Trained on synthetic practice music, not on real music."
# what is known of a checkpoint that a user of the package should know too
_KEPT = (
    "step", "commit", "synthetic", "data_labels", "data_licences", "temperature", "adapters",
)  # fmt: skip


def describe(
    package: Path,
    functions: Sequence[Function],
    loaded: Loaded[Any, Any],
    precision: str,
    measured: Mapping[str, Any],
) -> None:
    """Write descriptions into a package; its program and weights are not touched.

    Args:
        package: the folder.
        functions: in it.
        loaded: the model that it was made of.
        precision: of computation and weights, such as `fp16, int8 weights`.
        measured: what comparisons found, plain data.
    """
    from coremltools.proto import Model_pb2

    file = package / _MODEL
    model: Any = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    about = model.description.metadata
    about.author = "kmidi"
    # no path of this machine: the package travels
    practice = loaded.metadata.get("synthetic")
    about.shortDescription = functions[-1].exportable.about + _PRACTICE * bool(practice)
    about.license = _licence(loaded.metadata)
    about.versionString = kmidi_mlx.__version__
    known = {name: loaded.metadata[name] for name in _KEPT if name in loaded.metadata}
    for name, value in {
        "model": loaded.config.name,
        "precision": precision,
        "config": loaded.metadata["config"],
        **known,
        "measured": measured,
    }.items():
        text = value if isinstance(value, str) else json.dumps(value)
        about.userDefined[f"kmidi.{name}"] = text
    several = {described.name: described for described in model.description.functions}
    for function in functions:
        description = several.get(function.name, model.description)
        exportable = function.exportable
        meanings = {port.name: port.meaning for port in exportable.inputs + exportable.outputs}
        for feature in [*description.input, *description.output]:
            feature.shortDescription = meanings[feature.name]
    file.write_bytes(model.SerializeToString())


def _licence(metadata: Mapping[str, Any]) -> str:
    licences = metadata.get("data_licences")
    data = ", ".join(map(str, licences)) if isinstance(licences, list) and licences else "not known"
    return f"MIT (program). Licences of the music it was trained on: {data}."
