"""One operation of a program, ready to be evaluated, and its evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil.arguments import Operation
from kmidi_torch.export.mil.operations import OPERATIONS
from kmidi_torch.export.mil.values import Array, Type, Value

__all__ = ["Step"]

# parameters that take several tensors, also where it is one
_LISTS = ("values",)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name, kind: of the operation.
        outputs: names and types of its results.
    """

    name: str
    kind: str
    outputs: list[tuple[str, Type]]
    _function: Operation
    _single: list[tuple[str, str]]
    _several: list[tuple[str, list[str]]]

    @staticmethod
    def build(
        name: str,
        kind: str,
        arguments: Mapping[str, list[str]],
        outputs: list[tuple[str, Type]],
    ) -> Step:
        """Find what evaluates an operation.

        Args:
            name, kind: of the operation.
            arguments: names of tensors by parameter.
            outputs: names and types of its results.

        Raises:
            KmidiError: if it is unknown, or takes what is unknown of it.
        """
        if kind not in OPERATIONS:
            raise KmidiError(f"operation {name}: {kind} cannot be evaluated.")
        function = OPERATIONS[kind]
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise KmidiError(f"operation {name} ({kind}): {error}.") from error
        several = [(key, names) for key, names in arguments.items() if key in _LISTS]
        single = []
        for key in arguments.keys() - set(_LISTS):
            if len(arguments[key]) != 1:
                raise KmidiError(f"operation {name} ({kind}) takes one {key}, not several or none.")
            single.append((key, arguments[key][0]))
        return Step(name, kind, outputs, function, single, several)

    def evaluate(self, tensors: Mapping[str, Value]) -> list[Array]:
        """Evaluate the operation.

        Args:
            tensors: values by name, all that it takes among them.

        Raises:
            KmidiError: if it cannot be evaluated, or gives another type or shape than declared.
        """
        arguments = {key: tensors[name] for key, name in self._single}
        for key, names in self._several:
            arguments[key] = [tensors[name] for name in names]
        try:
            found = self._function(**arguments)
        except (ValueError, IndexError, TypeError, KeyError) as error:
            raise KmidiError(f"operation {self.name} ({self.kind}): {error}.") from error
        results = found if isinstance(found, list) else [np.asarray(found)]
        if len(results) != len(self.outputs):
            raise KmidiError(
                f"operation {self.name} ({self.kind}) gives {len(results)} tensors, but "
                f"{len(self.outputs)} are declared."
            )
        for result, (output, kind) in zip(results, self.outputs, strict=True):
            if result.shape != kind.shape or result.dtype != kind.computed:
                raise KmidiError(
                    f"operation {self.name} ({self.kind}) gives {result.dtype} "
                    f"{list(result.shape)}, but {output} is declared as {kind}."
                )
        return results
