"""The networks in MLX. Importing this package first gives MLX a fast BLAS on Linux."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()
