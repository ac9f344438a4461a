"""Training in PyTorch: loss, optimiser step, devices, many processes."""
