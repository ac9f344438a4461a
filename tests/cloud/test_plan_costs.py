"""What a plan computes: laws of hours, dollars and budgets, and the operations it counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_torch.planning.costs import (
    EXPORT_MINUTES,
    START_MINUTES,
    Job,
    cost_of,
    fitting_steps,
    gpus_of,
)
from kmidi_torch.planning.gpus import PEAKS, gpu_named, gpu_of_device
from kmidi_torch.planning.prices import Billing, read_prices
from kmidi_torch.planning.speed import Speed, given_speed, read_measurements, speed_of
from kmidi_torch.planning.work import Work, work_of
from tests.cloud.rented import CLOUD

SECOND = Billing(1e-6, 1e-6)
PLAIN = Work("midi_generator", "tokens", "bf16", 1024, 65536, 2, 1000, None, 175e6, 0.0)

works = st.builds(
    Work,
    model=st.sampled_from(["midi_generator", "spectocloud"]),
    unit=st.just("tokens"),
    precision=st.just("bf16"),
    row=st.just(1024),
    units_per_pass=st.integers(1, 10**6),
    passes=st.integers(1, 8),
    steps=st.integers(1, 10**5),
    steps_per_epoch=st.none(),
    flop_per_unit=st.floats(1e6, 1e10),
    evaluation_share=st.floats(0, 0.5),
)
rates = st.floats(10, 1e6)
usd = st.floats(0.01, 50)
billings = st.builds(Billing, seconds=st.sampled_from([1.0, 60.0, 3600.0]), least=st.just(60.0))


def job(work: Work, rate: float) -> Job:
    return Job(work, given_speed(rate, "--tokens-per-second"))


@given(works, rates, usd, billings, st.integers(1, 8))
def test_dollars_are_hours_times_price_times_gpus(
    work: Work, rate: float, price: float, billing: Billing, gpus: int
) -> None:
    cost = cost_of([job(work, rate)], [work.steps], gpus, price, billing)
    assert cost.dollars == pytest.approx(cost.hours * price * gpus)
    used = 60 * (START_MINUTES + EXPORT_MINUTES[work.model])
    used += work.steps * work.units_per_step * (1 + work.evaluation_share) / (rate * gpus)
    billed = cost.hours * 3600
    assert used - 1e-3 <= billed <= max(used + billing.seconds, billing.least) + 1e-3
    assert billed / billing.seconds == pytest.approx(round(billed / billing.seconds))


@given(works, rates, usd)
def test_half_the_speed_is_twice_the_time(work: Work, rate: float, price: float) -> None:
    fixed = 60 * (START_MINUTES + EXPORT_MINUTES[work.model]) / 3600
    whole, half = (
        cost_of([job(work, r)], [work.steps], 1, price, SECOND).hours - fixed
        for r in (rate, rate / 2)
    )
    assert half == pytest.approx(2 * whole, abs=1e-5)
    two = cost_of([job(work, rate)], [work.steps], 2, price, SECOND).hours - fixed
    assert 2 * two == pytest.approx(whole, abs=1e-5)


@given(works, works, rates, usd)
def test_together_only_the_start_is_saved(
    one: Work, other: Work, rate: float, price: float
) -> None:
    jobs = [job(one, rate), job(other, rate)]
    alone = [cost_of([each], [each.work.steps], 1, price, SECOND).hours for each in jobs]
    both = cost_of(jobs, [one.steps, other.steps], 1, price, SECOND).hours
    assert both == pytest.approx(sum(alone) - START_MINUTES / 60, abs=1e-5)


@settings(max_examples=200)
@given(st.lists(works, min_size=1, max_size=2), rates, usd, billings, st.floats(0.01, 1e3))
def test_a_budget_is_used_up_and_never_exceeded(
    runs: list[Work], rate: float, price: float, billing: Billing, budget: float
) -> None:
    speed = Speed(rate / 2, rate, 2 * rate, "estimated", "")
    jobs = [Job(work, speed) for work in runs]
    steps = fitting_steps(jobs, 1, price, billing, budget)
    wanted = [work.steps for work in runs]
    if steps is None:
        least = [math.ceil(work.steps / min(wanted)) for work in runs]
        assert cost_of(jobs, least, 1, price, billing, "slow").dollars > budget or min(wanted) < 2
        return
    assert cost_of(jobs, steps, 1, price, billing, "slow").dollars <= budget
    assert all(0 < count <= most for count, most in zip(steps, wanted, strict=True))
    if steps != wanted:
        most = max(wanted)
        share = next(s for s in range(most + 1) if [s * w // most for w in wanted] == steps)
        shares = (s for s in range(share, most + 1) if [s * w // most for w in wanted] != steps)
        more = [next(shares) * w // most for w in wanted] if share < most else wanted
        assert cost_of(jobs, more, 1, price, billing, "slow").dollars > budget


def test_machines_come_whole() -> None:
    assert [gpus_of(wanted, 8) for wanted in (1, 8, 9)] == [8, 8, 16]
    assert gpus_of(3, 1) == 3
    assert Billing(60, 60).billed(61) == 120
    assert Billing(1, 60).billed(3) == 60
    assert Billing(60, 60).billed(180.0000000001) == 180


@given(st.sampled_from(sorted(PEAKS)), works)
def test_an_estimate_stays_below_the_peak(gpu: str, work: Work) -> None:
    speed = speed_of(work, gpu, [])
    assert speed.kind == "estimated"
    assert speed.slow <= speed.likely <= speed.quick
    assert speed.quick * work.flop_per_unit <= 0.4001 * PEAKS[gpu].of("bf16")
    assert work.units_per_pass / speed.quick >= 0.0079


def measured(**changed: Any) -> dict[str, Any]:
    row = {
        "model": "midi_generator",
        "device": "NVIDIA GeForce RTX 4090",
        "precision": "bf16",
        "sequence": 1024,
        "batch": 64,
        "tokens_per_second": 2e5,
        "tokens_per_second_p10": 1.9e5,
        "tokens_per_second_p90": 2.1e5,
        "date": "2026-12-01",
    }
    return row | changed


def test_a_measurement_wins_where_it_fits(tmp_path: Path) -> None:
    file = tmp_path / "train_torch.jsonl"
    other = {"tokens_per_second": 7.0, "tokens_per_second_p10": 6.0, "tokens_per_second_p90": 8.0}
    lines = [
        measured(tokens_per_second=1.0),
        measured(),
        measured(**other, precision="fp32"),
        measured(**other, sequence=512),
        measured(**other, device="NVIDIA A100-SXM4-80GB"),
        measured(**other, device="cpu"),
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    found = read_measurements(file)
    assert len(found) == len(lines) - 1  # nobody rents this CPU
    speed = speed_of(PLAIN, "RTX4090", found)
    assert (speed.kind, speed.slow, speed.likely, speed.quick) == ("measured", 1.9e5, 2e5, 2.1e5)
    assert "NVIDIA GeForce RTX 4090, 2026-12-01, batch 64" in speed.source
    assert speed_of(PLAIN, "A100-80GB", found).likely == 7.0
    for gpu, work in (
        ("A10G", PLAIN),
        ("RTX4090", replace(PLAIN, precision="fp16")),
        ("RTX4090", replace(PLAIN, row=2048)),
        ("RTX4090", replace(PLAIN, model="spectocloud", unit="clouds", row=1200)),
    ):
        assert speed_of(work, gpu, found).kind == "estimated", (gpu, work)
    assert read_measurements(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", json.dumps(measured(tokens_per_second="fast")),
     json.dumps(measured(tokens_per_second_p10=-1)), json.dumps(measured(device=None))],
)  # fmt: skip
def test_what_is_no_measurement_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(measured()) + "\n" + line + "\n", "utf-8")
    with pytest.raises(KmidiError, match=r"lines\.jsonl, line 2: not a measurement of"):
        read_measurements(file)


def test_gpus_are_known_by_all_their_names() -> None:
    assert gpu_named("RTX4090") == gpu_of_device("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert gpu_named("A100-80GB") == gpu_of_device("NVIDIA A100-SXM4-40GB") == "A100"
    assert gpu_of_device("NVIDIA A10G") == "A10G" == gpu_named("A10G")
    assert gpu_of_device("NVIDIA A10") == "A10" == gpu_named("A10")
    assert gpu_of_device("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert gpu_named("K80") is None
    assert all(gpu_named(offer.gpu) for offer in read_prices(CLOUD / "prices.yaml"))


@pytest.mark.parametrize(
    ("model", "sets"),
    [
        ("midi_generator", ["model.num_layers=2", "model.cross_attention_layers=[1]"]),
        ("midi_generator", ["data.sequence_length=128", "model.num_layers=4",
                            "model.cross_attention_layers=[0, 1, 2, 3]"]),
        ("spectocloud", ["data.points=1200"]),
        ("spectocloud", ["data.points=200", "model.dims=[128, 256]", "model.depths=[1, 3]",
                         "model.decoder_dim=128"]),
    ],
)  # fmt: skip
def test_operations_are_those_that_pytorch_counts(model: str, sets: list[str]) -> None:
    train_torch = pytest.importorskip("bench.train_torch", exc_type=ImportError)
    counted = []

    def count(config: Any, net: Any, loss_sum: Any, batch: Any, unit: Any, *_: Any) -> Any:
        import numpy as np
        import torch

        net.initialise(0)
        rows = train_torch.stage_arrays(batch(2, np.random.default_rng(0)), torch.device("cpu"))
        counted.append(train_torch.flop(net, loss_sum, rows) / 2 / unit[1])
        return {}

    config = load_config(model, [], [*sets, "training.batch_size=2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_torch, "_measure", count)
        train_torch.MEASURED[model](config, None, None, 1)
    assert work_of(config).flop_per_unit == pytest.approx(counted[0], rel=0.03)
