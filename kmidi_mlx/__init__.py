"""kmidi: piano music that follows a feeling, written event by event in MLX."""

__version__ = "0.1.0"
