"""kmidi: emotion-steered piano music and 3D clouds in real time, written in MLX."""

__version__ = "0.1.0"
