from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_models import (
    TINY,
    Arrays,
    Parts,
    gradients,
    kept,
    music_batch,
    music_step,
    parts_step,
    randomise,
    rows_of,
    same_bits,
    slopes,
)

from kmidi_mlx.config import OptimizerConfig, TrainingConfig
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.training import step as step_module
from kmidi_mlx.training.step import TrainStep


def weights(model: Any) -> Arrays:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in arrays.values())))


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_add_up_to_the_batch_of_all_rows(rows: int) -> None:
    batch = music_batch(4)
    # a large epsilon makes the step a smooth function of the gradient
    options = OptimizerConfig(eps=1e-2, learning_rate=1e-2)
    whole, parts = music_step(options), music_step(options)
    one = whole.run([batch], 1e-2)
    several = parts.run([rows_of(batch, i, i + rows) for i in range(0, 4, rows)], 1e-2)
    for name, value in one.items():
        assert several[name] == pytest.approx(value, rel=1e-5), name
    assert one["weight"] == 3.5 * 16
    wanted = gradients(whole)
    for name, value in gradients(parts).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5, err_msg=name)
    moved = weights(whole.model)
    for name, value in weights(parts.model).items():
        np.testing.assert_allclose(value, moved[name], atol=1e-5, err_msg=name)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = music_step(), music_step(checkpointing=True)
    one, two = plain.run([music_batch()], 1e-3), checkpointed.run([music_batch()], 1e-3)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    wanted = gradients(plain)
    assert min(np.abs(value).max() for value in wanted.values()) > 0
    for name, value in gradients(checkpointed).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_the_global_norm_is_clipped_and_reported_unclipped(clip_norm: float) -> None:
    step = parts_step(clip_norm=clip_norm)
    given = {name: np.array(value) for name, value in slopes(0, size=3.0).items()}
    del given["weight"]
    assert norm(given) > 5
    measures = step.run([slopes(0, size=3.0)], 1e-3)
    assert measures["grad_norm"] == pytest.approx(norm(given), rel=1e-5)
    clipped = gradients(step)
    assert norm(clipped) == pytest.approx(min(clip_norm, norm(given)), rel=1e-4)
    factor = min(1.0, clip_norm / norm(given))
    for name, value in given.items():
        mean = next(got for key, got in clipped.items() if key.endswith(f".{name}.m"))
        np.testing.assert_allclose(mean, factor * value, rtol=1e-4, err_msg=name)


def test_the_gradient_is_the_mean_over_all_weights_of_the_step() -> None:
    step = parts_step(weight_decay=0.0)
    measures = step.run([slopes(0, weight=3.0), slopes(1, weight=5.0)], 1e-3)
    assert measures["weight"] == 8.0
    one, two = slopes(0), slopes(1)
    mean = next(value for key, value in gradients(step).items() if key.endswith(".sinks.m"))
    wanted = (np.array(one["sinks"]) + np.array(two["sinks"])) / 8
    np.testing.assert_allclose(mean, wanted, rtol=1e-5)


# --- AdamW ---------------------------------------------------------------------------------------


def adamw(rates: list[float], decay: float, beta1: float, beta2: float, eps: float) -> Arrays:
    """Decoupled weight decay as Loshchilov and Hutter write it (algorithm 2), in float64."""
    values = {name: value.astype(np.float64) for name, value in weights(Parts()).items()}
    means = {name: np.zeros_like(value) for name, value in values.items()}
    squares = {name: np.zeros_like(value) for name, value in values.items()}
    for t, rate in enumerate(rates, 1):
        batch = slopes(t)
        for name, value in values.items():
            gradient = np.array(batch[name]).astype(np.float64)
            means[name] = beta1 * means[name] + (1 - beta1) * gradient
            squares[name] = beta2 * squares[name] + (1 - beta2) * gradient**2
            mean = means[name] / (1 - beta1**t)
            square = squares[name] / (1 - beta2**t)
            own_decay = decay if name == "linear.weight" else 0.0
            values[name] = value - rate * (mean / (np.sqrt(square) + eps) + own_decay * value)
    return values


def test_five_steps_equal_adamw_by_the_book() -> None:
    options = {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
    step = parts_step(**options)
    rates = [0.1, 0.05, 0.2, 0.03, 0.01]
    for t, rate in enumerate(rates, 1):
        step.run([slopes(t)], rate)
    wanted = adamw(rates, *options.values())
    for name, value in weights(step.model).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_five_steps_equal_muon_by_the_book() -> None:
    options = {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
    step = parts_step(name="muon", momentum=0.9, **options)
    rates = [0.1, 0.05, 0.2, 0.03, 0.01]
    matrix = weights(step.model)["linear.weight"].astype(np.float64)
    mean = np.zeros_like(matrix)
    for t, rate in enumerate(rates, 1):
        gradient = np.array(slopes(t)["linear.weight"]).astype(np.float64)
        step.run([slopes(t)], rate)
        mean = 0.9 * mean + 0.1 * gradient
        ahead = 0.1 * gradient + 0.9 * mean
        # Jordan's polynomial sends the singular values near one and leaves the directions
        left, values, right = np.linalg.svd(ahead, full_matrices=False)
        values /= np.linalg.norm(ahead)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        assert values.min() > 0.5
        moved = 0.2 * np.sqrt(max(matrix.shape)) * (left * values) @ right
        matrix = matrix * (1 - rate * 0.3) - rate * moved
    wanted = adamw(rates, *options.values()) | {"linear.weight": matrix}
    for name, value in weights(step.model).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_only_matrices_that_are_no_embedding_decay() -> None:
    model = EmotionMIDITransformer(TINY)
    randomise(model)
    still = {name: mx.zeros(value.shape) for name, value in tree_flatten(model.parameters())}
    step = TrainStep(
        model,
        lambda module, batch: (
            sum(mx.sum(value * batch[name]) for name, value in tree_flatten(module.parameters())),
            mx.array(1.0),
        ),
        OptimizerConfig(weight_decay=0.5),
        TrainingConfig(),
        positions=1,
    )
    before = weights(model)
    step.run([still], 0.1)
    after = weights(model)
    decayed = {name for name in before if not np.array_equal(before[name], after[name])}
    for name in decayed:
        np.testing.assert_allclose(after[name], 0.95 * before[name], rtol=1e-5, err_msg=name)
    kept_as_they_were = set(before) - decayed
    layers = {name.split(".")[-2] for name in decayed}
    assert layers == {
        *("qkv", "query", "kv", "out", "gate_up", "down"),
        *("emotion_in", "emotion_out"),
    }
    assert all(
        "embedding" in name or "norm" in name or name.endswith(("bias", "sinks"))
        for name in kept_as_they_were
    )


# --- steps that are no numbers -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_bad_batch_changes_nothing_but_the_counters(poison: float, precision: str) -> None:
    step = parts_step(ema_decay=0.9, precision=precision)
    step.run([slopes(0)], 0.1)
    step.run([slopes(1)], 0.1)
    before = kept(step, "weights", "average", "optimizer")
    bad = slopes(2)
    bad["norm.weight"] = mx.array([1.0, poison, 1.0])
    measures = step.run([slopes(3), bad], 0.7)
    assert not measures["finite"]
    assert same_bits(kept(step, "weights", "average", "optimizer"), before)
    assert step.counters["bad_steps"].item() == 1
    assert step.counters["skipped_steps"].item() == 1
    assert step.counters["good_steps"].item() == 0

    # and the run goes on as if it had not been
    step.run([slopes(4)], 0.1)
    assert step.counters["bad_steps"].item() == 0
    assert step.counters["skipped_steps"].item() == 1
    clean = parts_step(ema_decay=0.9, precision=precision)
    for seed in (0, 1, 4):
        clean.run([slopes(seed)], 0.1)
    if precision == "fp16":
        clean.counters["loss_scale"] = step.counters["loss_scale"]
    assert same_bits(kept(step, "weights", "average"), kept(clean, "weights", "average"))


def test_a_loss_that_is_no_number_is_a_bad_step_even_with_a_good_gradient() -> None:
    def poisoned(model: Any, batch: Any) -> tuple[mx.array, mx.array]:
        return mx.sum(model.sinks * batch["sinks"]) + batch["extra"], batch["weight"]

    step = TrainStep(Parts(), poisoned, OptimizerConfig(), TrainingConfig(), positions=1)
    before = kept(step, "weights")
    step.run([slopes(0) | {"extra": mx.array(np.nan)}], 0.1)
    assert same_bits(kept(step, "weights"), before)
    step.run([slopes(0) | {"extra": mx.array(0.0)}], 0.1)
    assert not same_bits(kept(step, "weights"), before)


def test_conditions_that_are_no_numbers_leave_the_transformer_alone() -> None:
    step = music_step(ema_decay=0.9)
    step.run([music_batch()], 1e-3)
    before = kept(step, "weights", "average", "optimizer")
    bad = music_batch()
    bad["emotion"] = mx.full((4, 64), mx.nan)
    assert not step.run([bad], 1e-3)["finite"]
    assert same_bits(kept(step, "weights", "average", "optimizer"), before)
    assert step.run([music_batch()], 1e-3)["finite"]


# --- half precision ------------------------------------------------------------------------------


def test_the_loss_scale_halves_on_overflow_until_the_gradient_fits() -> None:
    step, exact = parts_step(precision="fp16"), parts_step()
    large = slopes(0, size=100.0)  # times 2**12 this is beyond the largest fp16 number
    scales = []
    while not step.run([large], 0.1)["finite"]:
        scales.append(step.counters["loss_scale"].item())
    assert scales[:2] == [2.0**11, 2.0**10]
    assert all(two == one / 2 for one, two in pairwise(scales))
    assert step.counters["skipped_steps"].item() == len(scales)
    assert step.counters["loss_scale"].item() == scales[-1]
    exact.run([large], 0.1)
    wanted = weights(exact.model)
    for name, value in weights(step.model).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_the_loss_scale_never_falls_below_one() -> None:
    step = parts_step(precision="fp16")
    for _ in range(20):
        step.run([slopes(0) | {"sinks": mx.array([np.inf, 0.0])}], 0.1)
    assert step.counters["loss_scale"].item() == 1.0


def test_the_loss_scale_doubles_after_good_steps_up_to_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_module, "SCALE_GROWTH_STEPS", 3)
    step = parts_step(precision="fp16")
    scales = []
    for seed in range(18):
        step.run([slopes(seed, size=0.01)], 0.01)
        scales.append(step.counters["loss_scale"].item())
    assert scales[:7] == [2.0**12] * 2 + [2.0**13] * 3 + [2.0**14] * 2
    assert scales[-1] == max(scales) == 2.0**16


def test_full_precision_has_no_loss_scale() -> None:
    step = parts_step()
    step.run([slopes(0) | {"sinks": mx.array([np.inf, 0.0])}], 0.1)
    assert step.counters["loss_scale"].item() == 1.0


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.03)])
def test_half_precision_learns_as_full_precision_does(precision: str, tolerance: float) -> None:
    exact, half = music_step(), music_step(precision=precision)
    losses = []
    for index in range(30):
        batch = music_batch(seed=index % 2)
        losses.append((exact.run([batch], 3e-3)["loss"], half.run([batch], 3e-3)["loss"]))
    assert losses[-1][0] < 0.7 * losses[0][0]
    for full, rounded in losses:
        assert rounded == pytest.approx(full, rel=tolerance)
    assert half.counters["skipped_steps"].item() == 0
    assert all(value.dtype == np.float32 for value in kept(half, "weights").values())


def test_small_gradients_survive_fp16() -> None:
    # without a loss scale these are below the smallest fp16 number
    tiny = {name: 1e-8 * value for name, value in slopes(0).items()} | {"weight": mx.array(1.0)}
    step = parts_step(precision="fp16", eps=1e-16)
    step.run([tiny], 0.1)
    for name, value in gradients(step).items():
        assert np.abs(value).max() > 1e-9, name


# --- averages ------------------------------------------------------------------------------------


def test_averaged_weights_follow_the_formula() -> None:
    step = parts_step(ema_decay=0.3)
    average = {name: value.astype(np.float64) for name, value in weights(step.model).items()}
    for t in range(1, 8):
        step.run([slopes(t)], 0.1)
        decay = min(0.3, (1 + t) / (10 + t))
        for name, value in weights(step.model).items():
            average[name] = decay * average[name] + (1 - decay) * value.astype(np.float64)
    got = step.weights_to_use()
    assert list(got) == list(average)
    for name, value in got.items():
        np.testing.assert_allclose(value, average[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # min() took both of its sides
    assert (1 + 1) / (10 + 1) < 0.3 < (1 + 7) / (10 + 7)
    assert not same_bits(got, weights(step.model))


def test_without_averaging_the_trained_weights_are_used() -> None:
    step = parts_step()
    step.run([slopes(0)], 0.1)
    used = step.weights_to_use()
    assert same_bits(used, weights(step.model))
    assert not kept(step, "average")


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("ema_decay", "name"), [(0.0, "adamw"), (0.9, "adamw"), (0.9, "muon")])
def test_a_step_that_took_over_a_state_goes_on_with_the_same_bits(
    precision: str, ema_decay: float, name: str
) -> None:
    options = {"precision": precision, "ema_decay": ema_decay}
    one, two = (music_step(OptimizerConfig(name=name), **options) for _ in range(2))
    for index in range(3):
        one.run([music_batch(seed=index)], 1e-3)
    two.run([music_batch(seed=9)], 1e-2)
    two.load_state_arrays(kept(one))
    assert same_bits(kept(two), kept(one))
    for index in range(3, 6):
        batches = [music_batch(seed=index), music_batch(seed=index + 1)]
        one.run(batches, 1e-3)
        two.run(batches, 1e-3)
    assert same_bits(kept(two), kept(one))
