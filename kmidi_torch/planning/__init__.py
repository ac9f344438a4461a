"""What training on rented GPUs takes: work, speed, prices, and what follows; no framework."""
