"""Generation: drawing events from the model, one step of look-ahead, always valid music."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()  # before the modules of this package import mlx
