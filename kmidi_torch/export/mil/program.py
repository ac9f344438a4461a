"""An ML Program that is evaluated with numpy, operation by operation.

This is slower than Core ML but needs no Mac, and it trusts nothing: every result is held against
the type and shape that the program declares, every weight against its record. Semantics are those
of Apple's reference of MIL operations (iOS 17 and iOS 18).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil.operations import MOVES
from kmidi_torch.export.mil.reader import Content, read_package
from kmidi_torch.export.mil.values import Array, Value

__all__ = ["LARGEST_HALF", "Largest", "Program"]

#: Largest number that fp16 holds.
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Largest:
    """Largest absolute value that an operation computed as fp16, before it was rounded.

    Attributes:
        value: it; above `LARGEST_HALF` (or NaN) it became infinite.
        tensor: name of the tensor.
        kind: of the operation that made it.
    """

    value: float
    tensor: str
    kind: str


class Program:
    """A function of an ML Program; made by `open`.

    Attributes:
        inputs, outputs: shape and numpy dtype of each, by name.
        largest: largest absolute value that was computed as fp16 in all half runs so far, or the
            first that was too large for fp16; None before.
    """

    def __init__(self, content: Content) -> None:
        self.inputs = {name: (kind.shape, kind.stored) for name, kind in content.inputs.items()}
        self.outputs = {name: (kind.shape, kind.stored) for name, kind in content.outputs.items()}
        self.largest: Largest | None = None
        self._content = content

    @staticmethod
    def open(path: Path, function: str | None = None) -> Program:
        """Read a package.

        Args:
            path: the `.mlpackage` folder.
            function: which of its functions; None: the one that runs when none is named.

        Raises:
            KmidiError: if there is no package, it is damaged, or something in it is not evaluated.
        """
        return Program(read_package(path, function))

    def run(self, inputs: Mapping[str, Array], half: bool = False) -> dict[str, Array]:
        """Evaluate the program.

        Args:
            inputs: arrays by name, of the declared shape and dtype. When everything is evaluated
                in fp32, an fp16 input may be given in fp32, so that a cache is never rounded.
            half: round every tensor that is declared as fp16 to fp16 (what is too large becomes
                infinite), as hardware does; False: evaluate everything in fp32. Sums are in fp32
                in both.

        Returns:
            Outputs by name: of the declared dtype if `half`, else fp32 in place of fp16.

        Raises:
            KmidiError: if an input does not fit, or an operation fails or gives what is not
                declared.
        """
        tensors: dict[str, Value] = {**self._content.constants, **self._checked(inputs, half)}
        with np.errstate(all="ignore"):
            for step in self._content.steps:
                values = step.evaluate(tensors)
                for (name, kind), value in zip(step.outputs, values, strict=True):
                    rounded = half and kind.dtype == "fp16" and step.kind not in MOVES
                    tensors[name] = self._round(value, name, step.kind) if rounded else value
            return {
                name: tensors[name].astype(kind.stored if half else kind.computed, copy=False)
                for name, kind in self._content.outputs.items()
            }

    def op_counts(self) -> dict[str, int]:
        """Return how often each operation is in the program, constants included, by name."""
        return dict(sorted(self._content.counts.items()))

    def constants(self) -> dict[str, Array]:
        """Return all constants that are tensors by name, read only, fp16 as fp32."""
        constants = self._content.constants.items()
        return {name: value for name, value in constants if isinstance(value, np.ndarray)}

    def _checked(self, inputs: Mapping[str, Array], half: bool) -> dict[str, Array]:
        """Inputs as they are computed with."""
        wanted = self._content.inputs
        if inputs.keys() != wanted.keys():
            raise KmidiError(f"the program takes {', '.join(wanted)}, not {', '.join(inputs)}.")
        checked = {}
        for name, kind in wanted.items():
            value = inputs[name]
            fits = value.dtype == kind.stored or (not half and value.dtype == kind.computed)
            if not fits or value.shape != kind.shape:
                raise KmidiError(
                    f"input {name} is {kind}, but {value.dtype} {list(value.shape)} was given."
                )
            checked[name] = value.astype(kind.computed, copy=False)
        return checked

    def _round(self, value: Array, name: str, kind: str) -> Array:
        largest = float(np.abs(value).max()) if value.size else 0.0
        before = self.largest
        # what follows the first number that is too large is its consequence; asked this way round,
        # NaN is too large as well
        if before is None or (before.value <= LARGEST_HALF and not largest <= before.value):
            self.largest = Largest(largest, name, kind)
        return value.astype(np.float16).astype(np.float32)
