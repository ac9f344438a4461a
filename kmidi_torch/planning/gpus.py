"""GPUs: what their makers promise, and what others call them."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["PEAKS", "Peak", "gpu_named", "gpu_of_device"]


class Peak(NamedTuple):
    """Dense TFLOP/s of matrix products by the maker's data sheet: bf16 and fp16, TF32, fp32."""

    half: float
    tf32: float
    full: float

    def of(self, precision: str, tf32: bool = False) -> float:
        """Operations a second at a precision of `training.precision`."""
        if precision != "fp32":
            return 1e12 * self.half
        return 1e12 * (self.tf32 if tf32 else self.full)


#: By what PyTorch's name of a device has in it; the more special ones come first.
PEAKS = {
    "H100 PCIe": Peak(756.0, 378.0, 51.0),
    "H100 NVL": Peak(835.0, 417.5, 60.0),
    "H100": Peak(989.0, 494.5, 67.0),
    "H200": Peak(989.0, 494.5, 67.0),
    "A100": Peak(312.0, 156.0, 19.5),
    "L40S": Peak(362.0, 183.0, 91.6),
    "L40": Peak(181.0, 90.5, 90.5),
    "L4": Peak(121.0, 60.0, 30.3),
    "A10G": Peak(70.0, 35.0, 31.2),
    "A10": Peak(125.0, 62.5, 31.2),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 3090": Peak(71.0, 35.6, 35.6),
}


def gpu_of_device(device: str) -> str | None:
    """Return the key of `PEAKS` for a device as PyTorch names it; None where there is none."""
    if "Laptop" in device:
        return None
    return next((part for part in PEAKS if re.search(rf"\b{part}\b", device)), None)


def gpu_named(name: str) -> str | None:
    """Return the key of `PEAKS` for a GPU as SkyPilot and price lists name it.

    Args:
        name: such as RTX4090, A100 or A100-80GB; memory and connector make no difference here.
    """
    plain = name.replace(" ", "").split("-")[0].lower()
    return next((part for part in PEAKS if part.replace(" ", "").lower() == plain), None)
