"""Out of memory, told as what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kmidi_mlx import checkpoint
from kmidi_mlx.config import MidiGeneratorConfig, RunConfig
from kmidi_mlx.errors import KmidiError

# what PyTorch says where it has no class of its own for it
_REFUSALS = ("can't allocate memory", "out of memory", "not enough memory")


@contextmanager
def memory_advice(config: RunConfig, folder: Path) -> Iterator[None]:
    """Turn a lack of memory inside the block into a sentence with the settings to change.

    Args:
        config: the run; only settings that would help it are named.
        folder: its checkpoint folder.

    Raises:
        KmidiError: when the block runs out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise KmidiError(_sentence(config, folder)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _REFUSALS)


def _sentence(config: RunConfig, folder: Path) -> str:
    training = config.training
    advice = []
    if training.batch_size > 1:
        advice.append(
            f"lower training.batch_size from {training.batch_size} and raise "
            f"training.grad_accum_steps from {training.grad_accum_steps} as much"
        )
    if isinstance(config, MidiGeneratorConfig):
        advice.append(f"lower data.sequence_length from {config.data.sequence_length}")
    # a recogniser is too small for it
    if not training.gradient_checkpointing and config.name != "emotion_recognizer":
        advice.append("set training.gradient_checkpointing=true")
    if training.precision == "fp32":
        advice.append("set training.precision=bf16")
    saved = (folder / checkpoint.LAST).exists()
    ending = f"; the last save in {folder} is whole, go on with --resume" if saved else ""
    return f"out of memory: {', or '.join(advice) or 'use a larger machine'}{ending}."
