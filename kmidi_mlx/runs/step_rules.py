"""What an optimiser step does in any framework: what decays, how fp16 losses are scaled."""

from __future__ import annotations

FIRST_LOSS_SCALE = 2.0**12
LARGEST_LOSS_SCALE = 2.0**16
# good steps before the loss scale is doubled
SCALE_GROWTH_STEPS = 500


def decays(name: str, dimensions: int) -> bool:
    """Whether a weight decays: matrices do; norms, biases, sinks and embeddings do not.

    Args:
        name: of the parameter, with dots.
        dimensions: number of axes of its array.
    """
    return dimensions >= 2 and "embedding" not in name
