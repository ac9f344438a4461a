"""How operations receive what they take.

An operation is a function whose parameters have the names and defaults that Apple's reference
gives them. Tensors are arrays, also those of one number; `numbers` and `number` read sizes and
axes from them. What numpy refuses as wrong it may refuse: the program names the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kmidi_torch.export.mil.values import Array, Value

__all__ = ["Operation", "axes_of", "number", "numbers"]

Operation = Callable[..., Value]


def number(value: Array | int) -> int:
    """Return a scalar as an int.

    Raises:
        ValueError: if there is more than one, or it is no integer.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iub":
        raise ValueError(f"{array.dtype} {list(array.shape)} where one integer belongs")
    return int(array.reshape(()))


def numbers(value: Array) -> list[Any]:
    """Return a vector as a list.

    Raises:
        ValueError: if it is none, or not of integers or booleans.
    """
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise ValueError(f"{array.dtype} {list(array.shape)} where integers belong")
    return array.tolist()


def axes_of(axes: Array | None, rank: int) -> tuple[int, ...]:
    """Return axes counted from the front; None: all.

    Raises:
        ValueError: if one is not there, or twice.
    """
    given = range(rank) if axes is None else numbers(np.atleast_1d(axes))
    found = tuple(axis + rank if axis < 0 else axis for axis in given)
    if len(set(found)) != len(found) or any(not 0 <= axis < rank for axis in found):
        raise ValueError(f"axes {list(given)} of {rank}")
    return found
