"""What the machine at hand reaches: rates to predict from, times to hold predictions against."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import mlx.core as mx
import numpy as np

from bench import decode
from bench.machines import Assumptions, Machine
from bench.passes import Pass, cloud_frame
from bench.traffic import Product
from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.models.loading import default_dtype
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud import CHANNELS, DEFAULT_POINTS

_CHAIN = 200  # kernels of the chain that prices a kernel


@dataclass(frozen=True)
class Here:
    """What was measured on this machine.

    Attributes:
        machine: with the rates of a large array and a large product.
        event, cloud: assumptions with the share of these rates that their own products reach.
        event_ms, cloud_ms: measured.
        python_event_ms, python_cloud_ms: Python's part.
    """

    machine: Machine
    event: Assumptions
    cloud: Assumptions
    event_ms: float
    cloud_ms: float
    python_event_ms: float
    python_cloud_ms: float


def measure_here(
    generator: EmotionMIDITransformer,
    network: SpectocloudViT,
    event: Pass,
    cloud: Pass,
    context: int,
    repeats: int,
) -> Here:
    """Measure rates, costs and times of this machine.

    Args:
        generator, network: in the precision that this machine prefers.
        event, cloud: their counts.
        context: events held.
        repeats: how often each pass is timed.
    """
    dtype = default_dtype()
    side = decode.Ours(generator, context, SamplingConfig())
    python_event_ms = decode.python_ms(side)
    (event_times,) = decode.measure([side], repeats)
    frame, given = cloud_frame(network)
    compiled = mx.compile(frame)
    large, large_flops = _large_product(dtype)
    mx.eval(compiled(*given))
    (python_cloud_ms,) = _medians_ms(21, lambda: compiled(*given))
    # the others take turns, so that a noisy machine is noisy for all
    cloud_ms, large_ms, event_products_ms, cloud_products_ms = _medians_ms(
        repeats,
        lambda: mx.eval(compiled(*given)),
        large,
        _all_products(event.traffic.products, dtype),
        _all_products(cloud.traffic.products, dtype),
    )
    bandwidth, flops = decode.bandwidth_bytes_per_second(), 1e3 * large_flops / large_ms
    kernel_ms, wait_ms = _medians_ms(21, _chain(dtype), _small_wait)
    costs = Assumptions(
        name="large products",
        kernel_us=1e3 * kernel_ms / _CHAIN,
        buffer_us=0.0,
        wait_us=1e3 * wait_ms,
        encode_us=0.0,
        host_speed=1.0,
        bandwidth_share=1.0,
        flops_share=1.0,
        activation_share=0.0,
    )
    moved = dtype.size * sum(inner * out for _, inner, out in event.traffic.products)
    computed = sum(2 * rows * inner * out for rows, inner, out in cloud.traffic.products)
    return Here(
        Machine("here", bandwidth, flops, sys.maxsize),
        replace(costs, bandwidth_share=1e3 * moved / event_products_ms / bandwidth),
        replace(costs, flops_share=1e3 * computed / cloud_products_ms / flops),
        float(np.median(event_times)),
        cloud_ms,
        python_event_ms,
        python_cloud_ms,
    )


def _large_product(dtype: mx.Dtype) -> tuple[Callable[[], None], int]:
    """A product that is large for the device, and its floating-point operations."""
    side = 4096 if mx.default_device().type == mx.DeviceType.gpu else 1024
    a = mx.random.normal((side, side)).astype(dtype)
    mx.eval(a)
    return lambda: mx.eval(a @ a), 2 * side**3


def _all_products(products: Sequence[Product], dtype: mx.Dtype) -> Callable[[], None]:
    """All products of a pass, each with weights of its own, stored as networks store them."""
    pairs = [
        tuple(mx.random.normal(shape).astype(dtype) for shape in ((rows, inner), (out, inner)))
        for rows, inner, out in products
    ]
    mx.eval(pairs)
    return lambda: mx.eval([x @ weight.T for x, weight in pairs])


def _chain(dtype: mx.Dtype) -> Callable[[], None]:
    """Tiny kernels that wait for one another."""

    def chain() -> None:
        x = mx.zeros((384,), dtype)
        for _ in range(_CHAIN):
            x = x + 1
        mx.eval(x)

    return chain


def _small_wait() -> None:
    mx.eval(mx.zeros((1,)) + 1)


def _medians_ms(repeats: int, *works: Callable[[], object]) -> list[float]:
    """Median milliseconds of each of the works, which take turns after one for nothing."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, own in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            if turn:
                own.append(1e3 * (time.perf_counter() - started))
    return [float(np.median(own)) for own in times]


def hand_over_ms() -> float:
    """Milliseconds to make a computed cloud half floats of the host and put it in its slot."""
    cloud = mx.random.uniform(shape=(DEFAULT_POINTS, len(CHANNELS)))
    mx.eval(cloud)
    slot, sequence = CloudSlot(), count()

    def hand_over() -> None:
        points = np.asarray(cloud).astype(np.float16)
        slot.put(CloudFrame(next(sequence), time.monotonic(), points, 0.0, 0.0))

    return _medians_ms(21, hand_over)[0]
