"""Benchmarks: `python -m bench.<name>`; each prints a table and JSON lines."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()  # before any benchmark imports mlx
