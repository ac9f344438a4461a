"""Fine-tuning in PyTorch learns what MLX's does, and either goes on with a run of the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx import checkpoint, convert
from kmidi_mlx.command import Interruption, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.finetuning import FinetunePlan, Memory, plan_finetuning
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training import finetuning as ours
from kmidi_torch.training import finetuning as theirs
from kmidi_torch.training.device import DeviceOptions

PairOf = Callable[..., Any]
StateOf = Callable[[Path, str], dict[str, Any]]
Apart = Callable[..., float]

ADAPTED = ["adapter.rank=4", "adapter.alpha=8", "adapter.dropout=0.3"]
# query and value of a fused layer, one layer whole, one in another part of the network
TARGETS = {"midi_generator": "[qkv:qv, out, kv]", "spectocloud": "[qkv:qv, query_in]"}
# steps are few and large, so that much is learnt
QUICK = [
    "training.batch_size=2",
    "training.grad_accum_steps=2",
    "training.gradient_checkpointing=false",
    "training.max_steps=8",
    "training.eval_epochs=0",
    "training.eval_every=4",
    "training.eval_batches=2",
    "training.save_epochs=0",
    "training.save_every=2",
    "training.sample_seconds=0",
    "training.patience=0",
    "training.ema_decay=0.9",
    "optimizer.learning_rate=1e-2",
    "optimizer.warmup_epochs=0",
    "optimizer.warmup_steps=2",
]


@pytest.fixture(scope="session")
def base_of(
    tiny_run: Path, tiny_cloud_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that gives a trained model of each kind; not to be changed."""
    from kmidi_mlx.config_file import load_config
    from kmidi_mlx.training.run import train_model

    bases = {"midi_generator": tiny_run}

    def base(model: str) -> Path:
        if model not in bases:
            folder = bases[model] = tmp_path_factory.mktemp("bases") / model
            config = load_config(model, [], [*tiny_cloud_settings, "training.max_steps=4"])
            with checkpoint.exclusive(folder):
                train_model(config, folder, False, Interruption())
        return bases[model]

    return base


@pytest.fixture
def plan_of(
    base_of: Callable[[str], Path], practice_data: Path, practice_clouds: Path
) -> Callable[..., FinetunePlan]:
    """A function that plans fine-tuning a model into a folder: new, or going on with it."""
    data = {"midi_generator": practice_data, "spectocloud": practice_clouds}

    def plan(model: str, out: Path, *more: str, base: Path | None = None) -> FinetunePlan:
        resume = (out / checkpoint.LAST).exists()
        targets = f"adapter.targets={TARGETS[model]}"
        settings = [] if resume else [*QUICK, *ADAPTED, targets]
        return plan_finetuning(
            model,
            data[model],
            base or base_of(model),
            None,
            out,
            data[model],
            resume,
            [],
            [*settings, *more],
        )

    return plan


class StopAfter(Interruption):
    """Asks for a stop after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def tune(framework: str, plan: FinetunePlan, steps: int = 99) -> tuple[Outcome, Memory | None]:
    with checkpoint.exclusive(plan.out):
        if framework == "mlx":
            return ours.finetune_model(plan, StopAfter(steps))
        return theirs.finetune_model(plan, StopAfter(steps), options=DeviceOptions("cpu"))


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("midi_generator", "lora"), ("midi_generator", "dora"), ("midi_generator", "full"),
        ("spectocloud", "dora"),
    ],
)  # fmt: skip
def test_five_steps_over_a_base_end_with_the_same_weights(
    pair_of: PairOf, base_of: Callable[[str], Path], model: str, method: str
) -> None:
    adapter = [f"adapter.base={base_of(model)}", f"adapter.targets={TARGETS[model]}", *ADAPTED]
    pair = pair_of(model, *adapter, f"adapter.method={method}")
    first = pair.theirs.state_arrays()
    for ours_, theirs_ in pair.train(5):
        assert theirs_["loss"] == pytest.approx(ours_["loss"], abs=1e-4)  # measured 1e-6
        assert theirs_["grad_norm"] == pytest.approx(ours_["grad_norm"], rel=1e-4)
    # the same names too
    assert pair.apart("weights", "average") < 1e-4  # measured 2e-5
    assert pair.apart("optimizer") < 1e-5
    learnt = {"lora": {"lora_a", "lora_b"}, "dora": {"lora_a", "lora_b", "magnitude"}}
    named = [name for name in first if name.startswith("weights.")]
    everything = dict(pair.their_task.model.named_parameters())
    if method == "full":
        assert len(named) == len(everything)
        return
    assert {name.rpartition(".")[2] for name in named} == learnt[method]
    trained = [name for name, weight in everything.items() if weight.requires_grad]
    assert {f"weights.{name}" for name in trained} == {*named}
    fresh = dict(type(pair.their_task).build(pair.their_task).named_parameters())
    changed = [n for n, weight in everything.items() if not np.array_equal(*of(weight, fresh[n]))]
    assert sorted(changed) == sorted(trained)


def of(*tensors: Any) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def test_a_run_in_two_parts_ends_with_the_same_bits(
    plan_of: Callable[..., FinetunePlan], state_of: StateOf, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, memory = tune("torch", plan_of("midi_generator", whole))
    outcome, nothing = tune("torch", plan_of("midi_generator", parts), 5)
    assert (outcome.reason, nothing) == ("interrupted", None)
    outcome, again = tune("torch", plan_of("midi_generator", parts))
    assert outcome.progression.step == 8
    assert again == memory
    assert memory is not None
    assert memory.after.own < memory.before.own
    for name in (checkpoint.LAST, checkpoint.ADAPTER):
        one, two = (state_of(folder, name) for folder in (whole, parts))
        assert one.keys() == two.keys()
        assert all(one[key].tobytes() == two[key].tobytes() for key in one), name
    assert not (whole / checkpoint.BEST).exists()


@pytest.mark.parametrize(
    ("first", "model", "method"),
    [
        ("mlx", "midi_generator", "lora"), ("torch", "midi_generator", "dora"),
        ("torch", "spectocloud", "lora"), ("mlx", "midi_generator", "full"),
    ],
)  # fmt: skip
def test_a_run_begun_in_one_framework_is_ended_in_the_other(
    plan_of: Callable[..., FinetunePlan],
    state_of: StateOf,
    arrays_apart: Apart,
    tmp_path: Path,
    first: str,
    model: str,
    method: str,
) -> None:
    second = "torch" if first == "mlx" else "mlx"
    chosen = f"adapter.method={method}"
    _, memory = tune(first, plan_of(model, tmp_path / "one", chosen))
    tune(first, plan_of(model, tmp_path / "two", chosen), 4)
    outcome, again = tune(second, plan_of(model, tmp_path / "two"))
    assert outcome.progression.step == 8
    assert memory is not None
    assert again is not None
    for before, after in ((memory.before, again.before), (memory.after, again.after)):
        assert after.own == pytest.approx(before.own, abs=1e-4)
        assert after.original == pytest.approx(before.original, abs=1e-4)
    weights = checkpoint.names_of(method != "full").weights
    for name in (checkpoint.LAST, weights):
        states = [state_of(tmp_path / folder, name) for folder in ("one", "two")]
        assert arrays_apart(*states) < 1e-4  # measured 6e-6
    told = [checkpoint.load_arrays(tmp_path / n / weights)[1] for n in ("one", "two")]
    assert told[0]["base"] == told[1]["base"]
    # nothing is dropped while it is judged
    assert [one["metric"] for one in told] == pytest.approx([memory.after.own, again.after.own])


def test_a_base_may_move_but_not_change(
    plan_of: Callable[..., FinetunePlan], tiny_run: Path, tmp_path: Path
) -> None:
    moved, out = tmp_path / "moved", tmp_path / "run"
    tune("mlx", plan_of("midi_generator", out), 2)
    shutil.copytree(tiny_run, moved)
    there = f"adapter.base={moved}"
    outcome, _ = tune("torch", plan_of("midi_generator", out, there), 2)
    assert outcome.progression.step == 4
    arrays, metadata = checkpoint.load_arrays(moved / checkpoint.BEST)
    name = next(iter(arrays))
    checkpoint.save_arrays(
        moved / checkpoint.BEST, {**arrays, name: arrays[name] + np.float32(1e-3)}, metadata
    )
    for framework in ("mlx", "torch"):
        with pytest.raises(KmidiError, match=r"was begun over other weights than those in .*moved"):
            tune(framework, plan_of("midi_generator", out, there))


@pytest.mark.parametrize("before", [True, False])
def test_a_quantised_base_is_learnt_over_as_in_mlx(
    plan_of: Callable[..., FinetunePlan],
    tiny_run: Path,
    state_of: StateOf,
    arrays_apart: Apart,
    tmp_path: Path,
    before: bool,
) -> None:
    base, bits = tmp_path / "small", "adapter.base_bits=4"
    if before:
        assert run(convert.main, [str(tiny_run), str(base), "--quantize", "4"]) == 0
    else:
        base = tiny_run
    memories = []
    for framework in ("mlx", "torch"):
        plan = plan_of("midi_generator", tmp_path / framework, bits, base=base)
        memories.append(tune(framework, plan)[1])
    one, two = memories
    assert one is not None
    assert two is not None
    assert two.before.own == pytest.approx(one.before.own, abs=1e-4)
    assert two.after.own == pytest.approx(one.after.own, abs=1e-4)
    states = [state_of(tmp_path / n, checkpoint.LAST) for n in ("mlx", "torch")]
    assert arrays_apart(*states) < 1e-4
    fused = []
    for framework, room in (("mlx", ours), ("torch", theirs)):
        plan = plan_of("midi_generator", tmp_path / framework, base=base)
        path = room.fuse(plan, tmp_path / f"fused-{framework}")
        fused.append(checkpoint.load_arrays(path)[0])
        assert {array.dtype for array in fused[-1].values()} == {np.dtype(np.float32)}
    assert arrays_apart(*fused) < 1e-4
    plain, _ = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    assert fused[0].keys() == plain.keys()
    if before:
        for framework in ("mlx", "torch"):
            # all the weights begin with the numbers that the packed ones mean
            out = tmp_path / f"whole-{framework}"
            _, memory = tune(
                framework, plan_of("midi_generator", out, "adapter.method=full", base=base)
            )
            assert memory is not None
            assert memory.before.own == pytest.approx(one.before.own, abs=1e-4)
