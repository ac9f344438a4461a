"""What the roofline counts is what graphs hold, and what it predicts follows from its table."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import date
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn

from bench import decode, kernels, machines, roofline
from bench.machines import Assumptions, Machine, Work, predict
from bench.passes import Pass, cloud_frame
from bench.rates import Here
from bench.traffic import trace
from kmidi_mlx.command import run

PLAIN = Assumptions("plain", 1.0, 10.0, 100.0, 0.0, 1.0, 1.0, 1.0, 0.0)
MACHINE = Machine("made up", 100e9, 1e12, 50)
#: 1 ms of bandwidth, 0.5 of compute, 0.1 + 0.02 of launches, 0.3 of Python
WORK = Work(100, 100_000_000, 7, 500_000_000, 0.3, overlaps=True)


def ready(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    array = mx.ones(shape, dtype)
    mx.eval(array)
    return array


# ---- counting


def test_a_product_and_what_is_fused_behind_it() -> None:
    x, w = ready(4, 8), ready(16, 8)
    counted = trace(lambda x: [mx.square(mx.exp(x @ w.T)) + 1.0], x)
    assert counted.input_bytes == 4 * 8 * 4
    assert counted.weight_bytes == 16 * 8 * 4 + 4  # and the one that is added
    # the product's result is written and read, the sum written; exp and square stay in registers
    assert counted.activation_bytes == 3 * 4 * 16 * 4
    assert counted.flops == 2 * 4 * 8 * 16
    assert counted.products == ((4, 8, 16),)
    assert counted.total_bytes == 128 + 516 + 768


def test_only_what_is_looked_at_is_read() -> None:
    table = ready(100, 8)
    rows = trace(lambda ids: [table[ids]], ready(3, dtype=mx.int32))
    assert (rows.weight_bytes, rows.input_bytes, rows.activation_bytes) == (96, 12, 96)
    part = trace(lambda x: [mx.sum(table[10:12]) + x], ready(1))
    assert part.weight_bytes == 2 * 8 * 4
    repeated = trace(lambda x: [mx.broadcast_to(x, (50, 8)).sum()], ready(1, 8))
    assert repeated.input_bytes == 8 * 4


def test_a_ring_is_written_where_it_changes_and_read_as_a_whole() -> None:
    new, slot = ready(1, 8), ready(1, dtype=mx.int32)

    def step(ring: mx.array) -> list[mx.array]:
        ring = mx.slice_update(ring, new, slot, axes=(0,))
        return [ring.sum(), ring]

    counted = trace(step, ready(128, 8))
    assert counted.input_bytes == 128 * 8 * 4
    assert counted.weight_bytes == 8 * 4 + 4
    assert counted.activation_bytes == 8 * 4 + 4


def test_reshapes_that_copy_are_kernels() -> None:
    x = ready(2, 3, 4)
    assert trace(lambda x: [x.reshape(6, 4) + 1], x).copies == 0
    assert trace(lambda x: [x.transpose(1, 0, 2) + 1], x).copies == 0
    copied = trace(lambda x: [x.transpose(1, 0, 2).reshape(6, 4) + 1], x)
    assert copied.copies == 1
    assert copied.input_bytes == 24 * 4
    assert copied.activation_bytes == 3 * 24 * 4
    # an axis of one may go anywhere
    assert trace(lambda x: [x.transpose(1, 0, 2).reshape(3, 4) + 1], ready(1, 3, 4)).copies == 0


def test_attention_and_quantised_products_are_counted() -> None:
    layer = nn.QuantizedLinear.from_linear(nn.Linear(64, 32, bias=False), 64, 8)
    mx.eval(layer.parameters())
    counted = trace(lambda x: [layer(x)], ready(1, 64, dtype=mx.float16))
    assert counted.flops == 2 * 64 * 32
    assert counted.weight_bytes == 64 * 32 + 2 * 32 * 4  # a byte each; scale and bias of a row
    q, k = ready(1, 2, 3, 16), ready(1, 2, 5, 16)
    seen = trace(lambda q: [mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0, mask=None)], q)
    assert seen.flops == 2 * (2 * 3 * 5) * (16 + 16)


@pytest.fixture(scope="module")
def events() -> dict[str, Pass]:
    """An event of the default generator, 2048 held, in every precision."""
    return {
        name: roofline.event_pass(roofline.generator(None, name), 2048)
        for name in roofline.PRECISIONS
    }


def test_an_event_reads_its_weights_and_its_ring_once(events: dict[str, Pass]) -> None:
    model = roofline.generator(None, "fp32")
    config, full = model.config, events["fp32"].traffic
    assert full.input_bytes == 4 * 2 * config.num_layers * 2048 * config.hidden_dim
    assert full.weight_bytes == pytest.approx(4 * decode.weights_per_event(model), rel=0.005)
    # two operations a weight, and four a held number of a layer's ring; cross-attention beside
    ring = 4 * config.num_layers * 2048 * config.hidden_dim
    assert full.flops == pytest.approx(2 * decode.weights_per_event(model) + ring, rel=0.005)
    half, bits = events["fp16"].traffic, events["8 bit"].traffic
    assert 2 * half.input_bytes == full.input_bytes == 2 * bits.input_bytes
    assert 2 * half.weight_bytes == pytest.approx(full.weight_bytes, rel=0.005)
    assert half.weight_bytes * 0.5 < bits.weight_bytes < half.weight_bytes * 0.55
    assert half.flops == full.flops == bits.flops
    assert full.copies == 0
    assert full.activation_bytes < 0.01 * full.total_bytes


def test_a_quantised_layer_cannot_add_in_the_same_kernel(events: dict[str, Pass]) -> None:
    residual_writes = 8 * 2 + 4
    assert events["fp32"].kernels == events["fp16"].kernels
    assert events["8 bit"].kernels == events["fp16"].kernels + residual_writes


def test_a_shorter_past_is_a_smaller_ring() -> None:
    model = roofline.generator(None, "fp16")
    short, long = (roofline.event_pass(model, context).traffic for context in (256, 512))
    assert long.input_bytes == 2 * short.input_bytes
    # but for the mask of the ring
    assert long.weight_bytes - short.weight_bytes < 10_000


def test_a_cloud_is_counted_as_the_other_counter_does() -> None:
    model = roofline.cloud_network(None, "fp32")
    frame, inputs = cloud_frame(model, 600)
    counted = roofline.cloud_pass(model, 600)
    assert counted.traffic.flops == kernels.products(lambda: frame(*inputs))
    assert counted.kernels <= 150
    assert counted.traffic.input_bytes >= sum(array.nbytes for array in inputs)
    more = roofline.cloud_pass(model, 1200)
    assert more.kernels == counted.kernels
    assert more.traffic.flops > counted.traffic.flops
    assert more.traffic.activation_bytes > counted.traffic.activation_bytes


# ---- predicting


def test_a_prediction_is_the_sum_of_what_cannot_overlap() -> None:
    times = predict(WORK, MACHINE, PLAIN)
    assert times.bandwidth == pytest.approx(1.0)
    assert times.compute == pytest.approx(0.5)
    assert times.launches == pytest.approx(0.12)
    assert times.gpu == pytest.approx(1.12)
    assert times.total == pytest.approx(1.22)  # Python is hidden
    assert predict(replace(WORK, overlaps=False), MACHINE, PLAIN).total == pytest.approx(1.52)
    assert predict(replace(WORK, host_ms=9.0), MACHINE, PLAIN).total == pytest.approx(9.0)
    through_memory = replace(PLAIN, activation_share=1.0)
    assert predict(replace(WORK, activation_bytes=10**8), MACHINE, through_memory).gpu > 2.0


@pytest.mark.parametrize(
    ("change", "binds"),
    [
        ({}, "bandwidth"),
        ({"flops": 5_000_000_000}, "compute"),
        ({"kernels": 5_000}, "launches"),
        ({"host_ms": 2.0}, "host"),
        ({"held_bytes": 1000, "flops": 1000, "kernels": 10}, "host"),
        ({"held_bytes": 1000, "flops": 1000, "kernels": 10, "host_ms": 0.05}, "wait"),
    ],
)
def test_the_limit_that_costs_most_is_named(change: dict[str, float], binds: str) -> None:
    assert predict(replace(WORK, **change), MACHINE, PLAIN).binds == binds  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    kernels_=st.integers(1, 1000),
    held=st.integers(1, 10**9),
    flops=st.integers(1, 10**11),
    host=st.floats(0.0, 5.0),
    overlaps=st.booleans(),
    factor=st.floats(1.0, 10.0),
)
def test_more_work_is_never_faster_and_a_better_machine_never_slower(
    kernels_: int, held: int, flops: int, host: float, overlaps: bool, factor: float
) -> None:
    work = Work(kernels_, held, held, flops, host, overlaps)
    total = predict(work, MACHINE, PLAIN).total
    assert total >= predict(work, MACHINE, PLAIN).gpu
    for better in (
        replace(MACHINE, bytes_per_second=factor * MACHINE.bytes_per_second),
        replace(MACHINE, flops_per_second=factor * MACHINE.flops_per_second),
        replace(MACHINE, kernels_per_buffer=2 * MACHINE.kernels_per_buffer),
    ):
        assert predict(work, better, PLAIN).total <= total
    for name in ("kernels", "held_bytes", "flops"):
        more = replace(work, **{name: int(factor * getattr(work, name))})
        assert predict(more, MACHINE, PLAIN).total >= total


def test_the_table_is_whole_dated_and_sourced() -> None:
    table = machines.machines()
    assert [machine.name for machine in table] == [
        f"Apple M{generation}{size}" for generation in range(1, 5) for size in ("", " Pro", " Max")
    ]
    date.fromisoformat(machines.table_date())
    for base, pro, top in zip(table[::3], table[1::3], table[2::3], strict=True):
        assert base.bytes_per_second < pro.bytes_per_second < top.bytes_per_second
        assert base.flops_per_second < pro.flops_per_second < top.flops_per_second
    # 2.6 TFLOP/s is what Apple itself gives for M1
    assert table[0].flops_per_second == pytest.approx(2.6e12, rel=0.01)
    assert all(assumed.sources for assumed in machines.assumptions())


def test_the_sets_of_assumptions_go_from_quick_to_slow() -> None:
    sets = machines.assumptions()
    assert [assumed.name for assumed in sets] == ["quick", "likely", "slow"]
    costs = ("kernel_us", "buffer_us", "wait_us", "encode_us", "activation_share")
    for field in fields(Assumptions):
        if field.name in ("name", "sources"):
            continue
        values = [getattr(assumed, field.name) for assumed in sets]
        assert values == sorted(values, reverse=field.name not in costs), field.name
        assert all(0 <= value <= 1 for value in values) or not field.name.endswith("share")


def test_the_likely_launches_solve_the_two_equations_they_come_from() -> None:
    likely = machines.assumptions()[1]
    for per_buffer, milliseconds in ((50, 8.8), (200, 7.7)):
        machine = replace(MACHINE, kernels_per_buffer=per_buffer)
        chain = predict(Work(3200, 0, 0, 0, 0.0, overlaps=True), machine, likely)
        assert chain.launches == pytest.approx(milliseconds, rel=0.01)


# ---- the command


def measured(*_: object) -> Here:
    return Here(MACHINE, PLAIN, PLAIN, 5.0, 6.0, 0.5, 0.3)


def test_the_command_tells_all_machines_and_how_to_check(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roofline, "measure_here", measured)
    file = tmp_path / "rows.jsonl"
    arguments = ["--generator", str(tiny_run), "--context", "8", "--events-per-frame", "3"]
    assert run(roofline.main, [*arguments, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "An event, 8 bit, 8 held" in printed
    assert "python -m bench.live --seconds 60 --paced" in printed
    assert "python -m bench.decode" in printed
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 12 * 3 + 1
    for line in rows[:-1]:
        low, high = map(float, line["event_range"].split("-"))
        assert low <= line["event_ms"] * 1.06
        assert line["event_ms"] <= high * 1.06
        after = line["frame_ms"] - 3 * line["event_ms"] - line["cloud_ms"]
        assert 0 <= after < 5
    assert rows[-1]["chip"] == "here"
    assert (rows[-1]["event_measured"], rows[-1]["cloud_measured"]) == (5.0, 6.0)


def test_this_machine_is_measured() -> None:
    model = roofline.generator(None, "fp32")
    counted = roofline.event_pass(model, 64)
    network = roofline.cloud_network(None, "fp32")
    cloud = roofline.cloud_pass(network)
    here = roofline.measure_here(model, network, counted, cloud, context=64, repeats=2)
    assert 1e8 < here.machine.bytes_per_second < 1e13
    assert 1e8 < here.machine.flops_per_second < 1e16
    assert here.event.bandwidth_share > 0
    assert here.cloud.flops_share > 0
    # Python's part is a part
    assert 0 < here.python_cloud_ms < here.cloud_ms
    # no machine beats its own memory
    bytes_read = counted.traffic.weight_bytes
    assert here.event_ms > 0.2e3 * bytes_read / here.machine.bytes_per_second


def test_music_and_the_hand_over_are_measured() -> None:
    assert 5 < roofline.music_events_per_second() < 200
    assert 0 < roofline.hand_over_ms() < 50


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--context", "0"], "--context 0: the model looks back on 1 to 2048 events"),
        (["--context", "2049"], "--context 2049"),
        (["--repeats", "0"], "--repeats 1 or more"),
        (["--events-per-frame", "-1"], "--events-per-frame must be 0 or more"),
        (["--generator", "nowhere"], "no such checkpoint"),
    ],
)
def test_what_cannot_be_counted_is_one_line(
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(roofline.main, arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_numbers_of_the_frame_are_those_of_the_network() -> None:
    model = roofline.cloud_network(None, "fp32")
    frame, inputs = cloud_frame(model, 200)
    (cloud,) = frame(*inputs)
    assert cloud.shape == (1, 200, 10)
    assert np.isfinite(np.array(cloud)).all()
