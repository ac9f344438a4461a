from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from kmidi_mlx import blas


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_loaded", None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)


def loader(present: set[str], tried: list[tuple[str, int]]) -> object:
    def load(name: str, mode: int) -> None:
        tried.append((name, mode))
        if name not in present:
            raise OSError(name)

    return load


def test_the_first_library_found_is_loaded_with_global_symbols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", loader({blas.CANDIDATES[1], blas.CANDIDATES[2]}, tried))
    assert blas.load_fast_blas() == blas.CANDIDATES[1]
    assert tried == [(name, ctypes.RTLD_GLOBAL) for name in blas.CANDIDATES[:2]]
    assert blas.load_fast_blas() == blas.CANDIDATES[1]
    assert len(tried) == 2  # once per process
    assert blas.blas_name() == blas.CANDIDATES[1]


def test_without_a_library_the_reference_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", loader(set(), []))
    assert blas.load_fast_blas() is None
    assert blas.blas_name() == "reference BLAS"


def test_nothing_is_loaded_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", loader(set(blas.CANDIDATES), tried))
    assert blas.load_fast_blas() is None
    assert blas.blas_name() == "Accelerate"
    assert tried == []


def test_loading_it_too_late_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    monkeypatch.setattr(ctypes, "CDLL", loader(set(blas.CANDIDATES), tried))
    with pytest.warns(RuntimeWarning, match="import kmidi_mlx.models first"):
        assert blas.load_fast_blas() is None
    assert tried == []


PROBE = """
import time
{before}
import mlx.core as mx
a = mx.random.normal((768, 768))
mx.eval(a @ a)
times = []
for _ in range(3):
    start = time.perf_counter()
    mx.eval(a @ a)
    times.append(time.perf_counter() - start)
print(min(times))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the slow reference BLAS")
def test_products_are_much_faster_with_it() -> None:
    if blas.load_fast_blas() is None:
        pytest.skip(f"no fast BLAS here: {blas.INSTALL_HINT}")

    def seconds(before: str) -> float:
        code = PROBE.format(before=before)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    slow, fast = seconds(""), seconds("import kmidi_mlx.models")
    assert fast < slow / 3  # measured 1/30 on two idle cores
