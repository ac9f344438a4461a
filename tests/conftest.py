"""Gives MLX a fast BLAS before any test imports it."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()
