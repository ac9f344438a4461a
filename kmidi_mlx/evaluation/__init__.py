"""Evaluation: how well a model predicts music, obeys emotions, and what its music is like."""

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()  # before the modules of this package import mlx
