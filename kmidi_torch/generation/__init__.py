"""Generation in PyTorch: the same music as `kmidi_mlx.generation`, event for event."""
