"""A fast BLAS for MLX on Linux, where its wheel links the slow reference library.

The reference BLAS multiplies matrices at about 3 GFLOP/s; OpenBLAS or MKL reach 30 times that.
Loading one of them with global symbols before `mlx.core` is first imported makes MLX use it.
On macOS MLX uses Accelerate and nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
import warnings

CANDIDATES = ("libopenblas.so.0", "libmkl_rt.so.2", "libmkl_rt.so")
INSTALL_HINT = "apt-get install libopenblas0-pthread"

_loaded: str | None = None


def load_fast_blas() -> str | None:
    """Load the first fast BLAS found and return its name; None when there is none (or on macOS).

    Too late once `mlx.core` is imported: a RuntimeWarning says so.
    """
    global _loaded  # noqa: PLW0603 - a library is loaded once per process
    if sys.platform != "linux" or _loaded is not None:
        return _loaded
    if "mlx.core" in sys.modules:
        warnings.warn(
            "mlx was imported before kmidi_mlx and multiplies with the slow reference BLAS; "
            "import kmidi_mlx.models first",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    for name in CANDIDATES:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        _loaded = name
        break
    return _loaded


def fast_blas_missing() -> bool:
    """Whether MLX will multiply with the slow reference BLAS here."""
    return sys.platform == "linux" and load_fast_blas() is None


def blas_name() -> str:
    """Say which BLAS MLX multiplies with, for benchmark lines."""
    if sys.platform == "darwin":
        return "Accelerate"
    return load_fast_blas() or "reference BLAS"
