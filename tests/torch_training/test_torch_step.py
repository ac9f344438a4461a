"""The optimiser step in PyTorch does what MLX's does, number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from kmidi_mlx.conversion import state_shapes
from kmidi_mlx.training import step as mlx_step
from kmidi_torch.training import step as torch_step
from kmidi_torch.training.run import make_step

MODELS = ("midi_generator", "spectocloud", "emotion_recognizer")
PairOf = Callable[..., Any]


@pytest.mark.parametrize("model", MODELS)
def test_five_steps_of_adamw_end_with_the_same_weights(pair_of: PairOf, model: str) -> None:
    pair = pair_of(model)
    before = pair.apart("weights")
    for ours, theirs in pair.train(5):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)  # measured 1.5e-6
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)  # 5e-6
        assert theirs["weight"] == ours["weight"]
    assert before == 0
    # measured: weights and averages 5.7e-6 (learning rates up to 1e-2), moments 3.3e-7
    assert pair.apart("weights", "average") < 1e-4
    assert pair.apart("optimizer") < 1e-5
    assert pair.apart("counters") == 0


@pytest.mark.parametrize("model", MODELS)
def test_muon_moves_as_in_mlx(pair_of: PairOf, model: str) -> None:
    pair = pair_of(model, "optimizer.name=muon")
    before = copied_state(pair.theirs)
    shapes = {name: tuple(w.shape) for name, w in pair.their_task.model.named_parameters()}
    expected = state_shapes(shapes, averaged=True, optimizer="muon")
    assert {name: value.shape for name, value in pair.theirs.state_arrays().items()} == expected
    for ours, theirs in pair.train(3):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=2e-2)
    ours, theirs = copied_state(pair.ours), copied_state(pair.theirs)
    assert pair.apart("optimizer.states.0.step", "counters") == 0
    remembered = [n for n in ours if n.startswith("optimizer.states.0.") and n.endswith(".v")]
    alike = []
    for name in remembered:
        weight = "weights." + name.removeprefix("optimizer.states.0.").removesuffix(".v")
        move, other = (state[weight] - before[weight] for state in (ours, theirs))
        alike.append(np.vdot(move, other) / (np.linalg.norm(move) * np.linalg.norm(other)))
        assert np.linalg.norm(other) == pytest.approx(np.linalg.norm(move), rel=0.1)
    # PyTorch makes them orthogonal in bfloat16: directions in which next to nothing moved differ
    assert min(alike) > 0.9
    assert np.median(alike) > 0.99


@pytest.mark.parametrize("model", ["midi_generator", "spectocloud"])
def test_recomputed_activations_change_nothing(pair_of: PairOf, model: str) -> None:
    pair = pair_of(model, "training.gradient_checkpointing=true")
    assert pair.their_task.model.checkpoint_blocks
    pair.train(2)
    assert pair.apart("weights") < 1e-4  # measured 5e-6


# Products are rounded to 11 bits (fp16) or 8 (bf16); MLX rounds what is added up as well.
HALF = {"fp16": (2e-4, 5e-3), "bf16": (2e-3, 2e-2)}  # measured 6e-5, 8e-4 and 3e-4, 3e-3


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("model", ["midi_generator", "emotion_recognizer"])
def test_half_precision_stays_near(pair_of: PairOf, model: str, precision: str) -> None:
    pair = pair_of(model, f"training.precision={precision}")
    loss_bound, norm_bound = HALF[precision]
    for ours, theirs in pair.train(2):
        assert theirs["finite"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=loss_bound)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=norm_bound)
    assert pair.apart("counters") == 0
    assert all(weight.dtype == torch.float32 for weight in pair.their_task.model.parameters())


def test_a_bad_step_changes_nothing_but_the_counters_as_in_mlx(
    pair_of: PairOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (mlx_step, torch_step):
        monkeypatch.setattr(module, "SCALE_GROWTH_STEPS", 2)
    pair = pair_of("emotion_recognizer", "training.precision=fp16", "training.grad_accum_steps=1")
    with pair.our_task.stream(0) as our, pair.their_task.stream(0) as their:
        good = next(our), next(their)
    spoilt_mel = {"mel": mx.full(good[0]["mel"].shape, mx.nan)}, {"mel": good[1]["mel"] * np.nan}
    bad = tuple(batch | spoilt for batch, spoilt in zip(good, spoilt_mel, strict=True))
    scales = []
    for index, batches in enumerate([good, bad, bad, good, good, good, good]):
        before = copied_state(pair.theirs)
        measures = [
            step.run([batch], 1e-3)
            for step, batch in zip((pair.ours, pair.theirs), batches, strict=True)
        ]
        assert [m["finite"] for m in measures] == [index not in (1, 2)] * 2
        assert pair.apart("counters") == 0
        assert pair.theirs.bad_steps == (index if index in (1, 2) else 0)
        after = copied_state(pair.theirs)
        assert all(np.array_equal(after[n], before[n]) for n in after) is (index in (1, 2))
        scales.append(pair.theirs.counters["loss_scale"])
    assert scales == [4096, 2048, 1024, 1024, 2048, 2048, 4096]
    assert pair.theirs.skipped_steps == pair.ours.skipped_steps == 2


def copied_state(step: Any) -> dict[str, Any]:
    """What a step keeps beside its counters."""
    arrays = step.state_arrays()
    return {n: np.array(v) for n, v in arrays.items() if not n.startswith("counters")}


def test_the_global_norm_is_clipped_and_reported_unclipped(pair_of: PairOf) -> None:
    pair = pair_of("midi_generator", "optimizer.clip_norm=0.01", "training.grad_accum_steps=1")
    ((ours, theirs),) = pair.train(1)
    assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    assert theirs["grad_norm"] > 0.1
    moments = [v for n, v in pair.theirs.state_arrays().items() if n.endswith(".m")]
    norm = np.sqrt(sum(np.square(value.astype(np.float64)).sum() for value in moments))
    assert norm / (1 - pair.config.optimizer.beta1) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "name"), [("fp32", "adamw"), ("fp16", "adamw"), ("fp32", "muon")]
)
def test_a_step_that_took_over_a_state_goes_on_with_the_same_bits(
    pair_of: PairOf, precision: str, name: str
) -> None:
    pair = pair_of("midi_generator", f"training.precision={precision}", f"optimizer.name={name}")
    one = pair.theirs
    with pair.their_task.stream(0) as batches:
        one.run([next(batches)], 1e-3)
        one.run([next(batches)], 1e-3)
        saved = {name: np.array(value) for name, value in one.state_arrays().items()}
        later = [next(batches) for _ in range(4)]

    def go_on(step: Any) -> dict[str, bytes]:
        step.run(later[:2], 2e-3)
        step.run(later[2:], 1e-3)
        return {name: value.tobytes() for name, value in step.state_arrays().items()}

    expected = go_on(one)
    two = make_step(pair.their_task)
    two.run(later[:1], 1e-2)
    two.load_state_arrays(saved)
    assert go_on(two) == expected


def test_the_model_holds_the_averages_only_while_asked_to(pair_of: PairOf) -> None:
    pair = pair_of("emotion_recognizer")
    pair.train(2)
    model, step = pair.their_task.model, pair.theirs
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with step.averaged():
        for name, value in step.weights_to_use().items():
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
            assert not np.array_equal(trained[name].numpy(), value)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
