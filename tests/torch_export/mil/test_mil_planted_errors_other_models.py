"""Errors that are planted into the converted cloud network and recogniser; see the generator's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kmidi_torch.export.coreml.compare import FP32_BOUND
from kmidi_torch.models import swin

Array = NDArray[Any]
Plant = Callable[[Any, SimpleNamespace], Any]
Apart = Callable[..., float]

# Measured: the converted models are at most 1.2e-5 from PyTorch, and every error planted here is at
# least 1.3e-3 away, 13 bounds.
CLOSE, FAR = FP32_BOUND / 5, 5 * FP32_BOUND


def _weight(name: str, change: Callable[[Array], Array]) -> Plant:
    return lambda package, case: package.edit(case.weights[name], change)


def _order(*names: str, rows: list[int]) -> Plant:
    """The first rows of some weights in another order."""

    def plant(package: Any, case: SimpleNamespace) -> None:
        for name in names:
            weight = case.weights[name]
            order = np.r_[rows, len(rows) : len(weight)]
            package.edit(weight, lambda known, order=order: known[order])

    return plant


def _becomes(kind: str, other: str, which: int = 0) -> Plant:
    def plant(package: Any, case: SimpleNamespace) -> None:
        package.of(kind)[which].type = other
        package.save()

    return plant


def _sets(kind: str, parameter: str, value: float, which: int = 0) -> Plant:
    return lambda package, case: package.set(package.of(kind)[which], parameter, value)


def _swapped(kind: str, parameter: str, chosen: Callable[[Any], bool], first: int) -> Plant:
    """Two neighbours in a list that an operation takes."""

    def plant(package: Any, case: SimpleNamespace) -> None:
        operation = next(op for op in package.of(kind) if chosen(op))
        taken = operation.inputs[parameter].arguments
        one, other = taken[first].name, taken[first + 1].name
        taken[first].name, taken[first + 1].name = other, one
        package.save()

    return plant


# ---- the cloud network


def _bias_transposed(package: Any, case: SimpleNamespace) -> None:
    bias = case.module.get_buffer("_bias_2").numpy()
    package.edit(bias, lambda known: known.swapaxes(-1, -2))


def _shift_not_masked(package: Any, case: SimpleNamespace) -> None:
    bias = case.module.get_buffer("_bias_1").numpy()
    limit = swin.MASKED / 2
    package.edit(bias, lambda known: np.where(known < limit, known - swin.MASKED, known))


def _patches_by_columns(weight: Array) -> Array:
    return weight.reshape(-1, 3, 8, 8).swapaxes(2, 3).reshape(weight.shape)


def _neighbours_swapped(weight: Array) -> Array:
    parts = weight.reshape(len(weight), 4, -1)
    return parts[:, [0, 2, 1, 3]].reshape(weight.shape)


def _one_element(weight: Array) -> Array:
    weight.flat[np.abs(weight).argmax()] *= 1.01
    return weight


def _sine_and_cosine_swapped(package: Any, case: SimpleNamespace) -> None:
    sines, cosines = package.of("sin"), package.of("cos")
    for operation in sines:
        operation.type = "cos"
    for operation in cosines:
        operation.type = "sin"
    package.save()


def _joins(count: int) -> Callable[[Any], bool]:
    return lambda operation: len(operation.inputs["values"].arguments) == count


def _not_shifted(package: Any, case: SimpleNamespace) -> None:
    """The rows that leave the map above come in where they left."""
    pair = next(op for op in package.of("concat") if package.shape(op) == [1, 128, 16])
    taken = pair.inputs["values"].arguments
    first, second = taken[0].name, taken[1].name
    taken[0].name, taken[1].name = second, first
    package.save()


def _positions_not_stretched(package: Any, case: SimpleNamespace) -> None:
    package.edit(np.float32([2, 2, 2, 1, 1, 1, 1, 1, 1, 1]), np.ones_like)


CLOUD: dict[str, Plant] = {
    "position biases transposed": _bias_transposed,
    "no mask where windows are shifted": _shift_not_masked,
    "map not shifted": _not_shifted,
    "patches read column by column": _weight("patch_embedding.weight", _patches_by_columns),
    "neighbours in another order in a merge": _weight(
        "merges.0.reduction.weight", _neighbours_swapped
    ),
    "gain and bias of a modulated norm swapped": _order(
        "modulation.weight", "modulation.bias", rows=[*range(16, 32), *range(16)]
    ),
    "keys and values of the points swapped": _order(
        "decoder.0.attention.kv.weight", rows=[*range(32, 64), *range(32)]
    ),
    "red and green swapped": _order("head.weight", "head.bias", rows=[0, 1, 2, 4, 3]),
    "bias dropped": _weight("condition_out.bias", np.zeros_like),
    "gain of a norm too large by 5%": _weight("merges.0.norm.weight", lambda gain: gain * 1.05),
    "one element of a weight too large by 1%": _weight("patch_embedding.weight", _one_element),
    "epsilon 1e-3 for 1e-5": _sets("layer_norm", "epsilon", 1e-3),
    "shares of time and pitch swapped": _swapped("concat", "values", _joins(3), first=1),
    "sine and cosine swapped": _sine_and_cosine_swapped,
    "softmax along another axis": _sets("softmax", "axis", -2),
    "another activation": _becomes("relu", "silu", -1),
    "a maximum for a sum": _becomes("reduce_sum", "reduce_max"),
    "positions not stretched": _positions_not_stretched,
}


@pytest.mark.parametrize("error", CLOUD)
def test_errors_in_the_cloud_network(error: str, apart: Apart) -> None:
    assert apart("spectocloud", CLOUD[error]) > FAR


# ---- the recogniser


def _convolution_backwards(package: Any, case: SimpleNamespace) -> None:
    taps = case.weights["blocks.0.convolution.weight"]
    first, last = taps[0].copy(), taps[-1].copy()
    package.edit(first, lambda _: np.full_like(first, 7.0))
    package.edit(last, lambda _: first)
    package.edit(np.full_like(first, 7.0), lambda _: last)


def _tap_too_early(package: Any, case: SimpleNamespace) -> None:
    """The middle tap of the second block looks back three steps, not two."""
    for cut in package.of("slice_by_index"):
        begin, end = (package.value(cut, side) for side in ("begin", "end"))
        if package.shape(cut)[2:] == [case.config.dim] and (end - begin)[1] > 0 and begin[1] == 2:
            package.set(cut, "begin", begin - [0, 1, 0])
            package.set(cut, "end", end - [0, 1, 0])
            return
    raise AssertionError


def _halves_swapped(weight: Array) -> Array:
    return np.roll(weight, weight.shape[1] // 2, axis=1)


def _forgets_faster(package: Any, case: SimpleNamespace) -> None:
    decay = np.float32([-case.config.patch_frames / case.config.memory_frames])
    package.edit(decay, lambda known: known * 1.2)


def _not_calibrated(package: Any, case: SimpleNamespace) -> None:
    divided = package.of("softmax")[-1]
    logits = divided.inputs["x"].arguments[0].name
    (cooled,) = [op for op in package.of("mul", "real_div") if op.outputs[0].name == logits]
    package.set(cooled, "y", 1.0)


def _variance_floor(package: Any, case: SimpleNamespace) -> None:
    package.edit(np.float32([1e-4]), lambda known: known * 10)


def _epsilons(package: Any, case: SimpleNamespace) -> None:
    for norm in package.of("layer_norm"):
        package.set(norm, "epsilon", 1e-2)


RECOGNIZER: dict[str, Plant] = {
    "convolution runs backwards": _convolution_backwards,
    "tap looks back too far": _tap_too_early,
    "a patch and the one before swapped": _weight("stem.weight", _halves_swapped),
    "valence and arousal swapped": _order("numbers.weight", "numbers.bias", rows=[1, 0]),
    "bias dropped": _weight("blocks.1.convolution.bias", np.zeros_like),
    "gain of a norm too large by 5%": _weight("final_norm.weight", lambda gain: gain * 1.05),
    "one element of a weight too large by 1%": _weight("cues.weight", _one_element),
    # what comes into its norms varies so much that 1e-3 would be 1.4 bounds away
    "epsilon 1e-2 for 1e-5": _epsilons,
    "forgets faster": _forgets_faster,
    "frames counted that do not count": _sets("floor_div", "y", 3),
    "not calibrated": _not_calibrated,
    "another floor of the variance": _variance_floor,
    "every semitone a peak": _becomes("logical_and", "logical_or"),
    "ages not weighed as shares": _becomes("reduce_sum", "reduce_max", 1),
}


@pytest.mark.parametrize("error", RECOGNIZER)
def test_errors_in_the_recogniser(error: str, apart: Apart) -> None:
    assert apart("emotion_recognizer", RECOGNIZER[error]) > FAR


@pytest.mark.parametrize("name", ["midi_generator", "spectocloud", "emotion_recognizer"])
def test_without_an_error_a_model_is_close(name: str, apart: Apart) -> None:
    assert apart(name, lambda package, case: None) < CLOSE
