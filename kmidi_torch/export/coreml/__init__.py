"""Core ML packages: traced, converted, quantised, described, and compared with the model."""
