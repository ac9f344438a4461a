"""Where PyTorch trains: choosing the device, its settings, its memory."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

import torch

from kmidi_mlx.errors import KmidiError

DEVICES = ("cuda", "mps", "cpu")
# as torch.cpu.get_capabilities names them: x86, then ARM
_HALF_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class DeviceOptions:
    """How a device is used.

    Attributes:
        name: cuda, cuda:1, mps or cpu; None: the best there is.
        compile: compile the loss and its gradient into kernels of their own; None: on CUDA.
        deterministic: the same bits in every run on the same machine, where that costs speed.
        tf32: multiply fp32 matrices in TF32 on CUDA, with 11 bits instead of 24.
    """

    name: str | None = None
    compile: bool | None = None
    deterministic: bool = False
    tf32: bool = False

    def compiles_on(self, device: torch.device) -> bool:
        """Whether the loss is compiled there."""
        return device.type == "cuda" if self.compile is None else self.compile


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """Return the device of a name.

    Args:
        name: cuda, cuda:N, mps, cpu; None: the first of them that is here.
        local_rank: number of this process on its machine; it gets the GPU of that number unless
            one is named.

    Raises:
        KmidiError: when there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isdecimal())):
        raise KmidiError(f"--device {name!r} is unknown; give cuda, cuda:N, mps or cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number) if number else local_rank
        if index >= count:
            raise KmidiError(
                f"--device {name}: PyTorch {torch.__version__} sees {count} CUDA devices here and "
                f"number {index} is asked for; leave out --device to use what there is."
            )
        return torch.device("cuda", index)
    if kind == "mps" and not _has_mps():
        raise KmidiError("--device mps: there is no Apple GPU that PyTorch can use here.")
    return torch.device(kind)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def prepare_device(device: torch.device, options: DeviceOptions, memory_gb: float) -> None:
    """Set what a device does for the whole process.

    Args:
        device: to be used.
        options: of the person.
        memory_gb: most that may be taken on a GPU; 0: all.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if memory_gb > 0:
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / whole), device)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    if options.deterministic:
        # read when the first matrix is multiplied on CUDA
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)


def describe_device(device: torch.device) -> str:
    """Name a device for a person."""
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "the GPU (Apple)"
    return f"the CPU ({torch.get_num_threads()} threads)"


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory taken so far: of tensors on CUDA, held now on MPS, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def has_slow_half(device: torch.device, precision: str) -> bool:
    """Whether a CPU lacks instructions for products of half a precision; False for other devices.

    A PyTorch before 2.11 cannot tell; no CPU has them then.
    """
    if device.type != "cpu":
        return False
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not any(able.get(name) for name in _HALF_INSTRUCTIONS.get(precision, ()))
