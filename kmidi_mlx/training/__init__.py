"""Training: loss, schedule, checkpoint, tracker, loop."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()  # before the modules of this package import mlx
