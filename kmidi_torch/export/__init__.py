"""Files that run without PyTorch and MLX, each proved equal to the model before it is kept."""
