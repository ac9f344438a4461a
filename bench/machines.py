"""Machines, what is assumed of them, and the time that work should take on them: a roofline model.

A pass of a network on a GPU lasts as long as the slower of moving its bytes and doing its products
(Williams, Waterman and Patterson 2009, "Roofline"), and on top of that the launches of its kernels,
which wait for one another in a network. What Python does meanwhile, and waiting for the result, are
added where they cannot overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "Assumptions", "Machine", "Times", "Work", "assumptions", "machines", "predict", "table_date",
]  # fmt: skip

TABLE = Path(__file__).with_name("machines.yaml")
FLOP_PER_CORE_AND_CYCLE = 256


@dataclass(frozen=True)
class Machine:
    """A machine as its maker describes it.

    Attributes:
        name: as `sysctl machdep.cpu.brand_string` gives it.
        bytes_per_second: of memory.
        flops_per_second: of the GPU's multiply-adds, fp16 and fp32 alike.
        kernels_per_buffer: kernels that MLX puts into one command buffer.
    """

    name: str
    bytes_per_second: float
    flops_per_second: float
    kernels_per_buffer: int


@dataclass(frozen=True)
class Assumptions:
    """What a small model meets of a machine; units as in `machines.yaml`, sources there too."""

    name: str
    kernel_us: float
    buffer_us: float
    wait_us: float
    encode_us: float
    host_speed: float
    bandwidth_share: float
    flops_share: float
    activation_share: float
    sources: str = ""


@dataclass(frozen=True)
class Work:
    """What one pass asks for.

    Attributes:
        kernels: launched.
        held_bytes: of weights and caches, read from memory each time.
        activation_bytes: read and written of what lives from one kernel to the next.
        flops: of products.
        host_ms: milliseconds that Python needs on the measuring machine to build the graph.
        overlaps: whether Python builds the next graph while this one is computed.
    """

    kernels: int
    held_bytes: int
    activation_bytes: int
    flops: int
    host_ms: float
    overlaps: bool


@dataclass(frozen=True)
class Times:
    """Milliseconds that a pass should take, and what they are made of.

    Attributes:
        bandwidth, compute, launches: of the GPU, each alone.
        host: Python, with the encoding of the kernels.
        wait: from the GPU's being done until Python goes on.
        overlaps: as in `Work`.
    """

    bandwidth: float
    compute: float
    launches: float
    host: float
    wait: float
    overlaps: bool

    @property
    def gpu(self) -> float:
        """Milliseconds of the GPU: launches do not overlap with the kernels that they follow."""
        return max(self.bandwidth, self.compute) + self.launches

    @property
    def total(self) -> float:
        """Milliseconds from one result to the next."""
        if self.overlaps:
            return max(self.gpu + self.wait, self.host)
        return self.gpu + self.wait + self.host

    @property
    def binds(self) -> str:
        """The limit that costs most: bandwidth, compute, launches, host or wait."""
        parts = {
            "bandwidth": self.bandwidth,
            "compute": self.compute,
            "launches": self.launches,
            "wait": self.wait,
        }
        if not self.overlaps or self.host > self.gpu + self.wait:
            parts["host"] = self.host
        return max(parts, key=lambda name: parts[name])


def predict(work: Work, machine: Machine, assumed: Assumptions) -> Times:
    """Milliseconds that `work` should take on a machine."""
    buffers = math.ceil(work.kernels / machine.kernels_per_buffer)
    moved = work.held_bytes + assumed.activation_share * work.activation_bytes
    return Times(
        bandwidth=1e3 * moved / (machine.bytes_per_second * assumed.bandwidth_share),
        compute=1e3 * work.flops / (machine.flops_per_second * assumed.flops_share),
        launches=1e-3 * (work.kernels * assumed.kernel_us + buffers * assumed.buffer_us),
        host=work.host_ms / assumed.host_speed + 1e-3 * work.kernels * assumed.encode_us,
        wait=1e-3 * assumed.wait_us,
        overlaps=work.overlaps,
    )


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return table


def table_date() -> str:
    """Day on which the table was compiled, ISO."""
    return str(_table()["date"])


def machines() -> list[Machine]:
    """Machines of the table."""
    return [
        Machine(
            entry["name"],
            1e9 * entry["bandwidth"],
            1e9 * entry["gpu_ghz"] * entry["gpu_cores"] * FLOP_PER_CORE_AND_CYCLE,
            entry["kernels_per_buffer"],
        )
        for entry in _table()["machines"]
    ]


def assumptions() -> list[Assumptions]:
    """Sets of assumptions of the table, from quick to slow; the second is the likely one."""
    return [Assumptions(**entry) for entry in _table()["assumptions"]]
