"""Batches that fit into the memory there is, with the sum over a step unchanged."""

from __future__ import annotations

from dataclasses import replace

from kmidi_mlx.config import RunConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.memory import estimated_bytes

# The estimate is right to about a third.
_USABLE_SHARE = 0.7


def fitting(config: RunConfig, parameters: int, memory_gb: float) -> list[str]:
    """Choose the largest batch that fits; what a step sums over stays the same.

    Args:
        config: the run as it is wanted.
        parameters: weights of its model.
        memory_gb: that it may take.

    Returns:
        Options for `--set`; checkpointing is added where no batch fits without.

    Raises:
        KmidiError: when not even the smallest batch fits.
    """
    training = config.training
    together = training.batch_size * training.grad_accum_steps
    least = 2 if config.name == "spectocloud" else 1  # clouds come in pairs
    sizes = [size for size in range(together, 0, -1) if together % size == 0 and size % least == 0]
    limit = _USABLE_SHARE * memory_gb * 1e9
    for checkpointing in sorted({training.gradient_checkpointing, True}):
        for size in sizes:
            if size > training.batch_size:
                continue
            options = replace(
                training,
                batch_size=size,
                grad_accum_steps=together // size,
                gradient_checkpointing=checkpointing,
            )
            if estimated_bytes(replace(config, training=options), parameters) <= limit:
                return [
                    f"training.batch_size={size}",
                    f"training.grad_accum_steps={together // size}",
                    f"training.gradient_checkpointing={str(checkpointing).lower()}",
                    f"training.memory_gb={memory_gb:g}",
                ]
    raise KmidiError(
        f"{config.name} does not fit into {memory_gb:g} GB even one window at a time; raise "
        "workflow.memory_gb, or lower data.sequence_length or the sizes of the model."
    )
