"""Core ML itself, where there is a Mac: how far each kind of processor is off, and how fast."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_torch.export.coreml.compare import half_bound
from kmidi_torch.export.coreml.functions import MAIN, Call
from kmidi_torch.export.report import Difference

__all__ = ["UNITS", "Prediction", "available", "predict"]

#: Names in `coremltools.ComputeUnit`.
UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")
# an fp32 program on the CPU; sums are in another order there
_CPU_FP32_BOUND = 1e-3
_TIMED_CALLS = 20


@dataclass(frozen=True)
class Prediction:
    """What Core ML gave.

    Attributes:
        differences: on the CPU, which has to keep its bounds.
        notes: a sentence for each compute unit.
        milliseconds: median time of the call that a live player makes, on the fastest unit that
            keeps its bounds; None: none does.
    """

    differences: list[Difference]
    notes: list[str]
    milliseconds: float | None


def available() -> bool:
    """Tell whether packages can be run here."""
    return sys.platform == "darwin"


def predict(
    package: Path,
    calls: Sequence[Call],
    dtypes: Mapping[str, Mapping[str, Any]],
    expected: Callable[[Call], Mapping[str, NDArray[Any]]],
    half: bool,
) -> Prediction:
    """Run a package in Core ML on every compute unit.

    Args:
        package: the folder.
        calls: with real inputs; those of the function that comes last are timed.
        dtypes: of the inputs of each function.
        expected: what the model gives, with weights as the package has them.
        half: whether the package computes in fp16.
    """
    import coremltools as ct

    live = calls[-1].function
    results, times, notes = [], {}, []
    for unit in UNITS:
        models = {
            name: ct.models.MLModel(
                str(package),
                compute_units=ct.ComputeUnit[unit],
                function_name=None if name == MAIN else name,
            )
            for name in dtypes
        }
        off: dict[str, Difference] = {}
        for call in calls:
            inputs = {n: v.astype(dtypes[call.function][n]) for n, v in call.inputs.items()}
            found = models[call.function].predict(inputs)
            for name, value in expected(call).items():
                tight = unit == "CPU_ONLY" and not half
                bound = _CPU_FP32_BOUND if tight else half_bound(value)
                apart = float(np.abs(value - np.asarray(found[name], np.float32)).max())
                worst = off.get(name)
                if worst is None or not apart / bound <= worst.largest / worst.bound:
                    off[name] = Difference(f"{name}, Core ML {unit}", apart, bound)
        last = next(call for call in reversed(calls) if call.function == live)
        inputs = {n: v.astype(dtypes[live][n]) for n, v in last.inputs.items()}
        milliseconds = _median_milliseconds(models[live], inputs)
        if unit == UNITS[0]:
            results = list(off.values())
        told = ", ".join(f"{name} {difference.largest:.1e}" for name, difference in off.items())
        note = f"Core ML {unit}: {milliseconds:.2f} ms a call; off by {told}"
        if all(difference.holds for difference in off.values()):
            times[unit] = milliseconds
        else:
            note += "; too far from the model, do not choose it"
        notes.append(note)
    return Prediction(results, notes, min(times.values(), default=None))


def _median_milliseconds(model: Any, inputs: Mapping[str, NDArray[Any]]) -> float:
    times = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        model.predict(inputs)
        times.append(1000.0 * (time.perf_counter() - start))
    return float(np.median(times))
