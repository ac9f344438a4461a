"""How much memory a training run will need, before it takes it."""

from __future__ import annotations

import os

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.errors import KmidiError

# Values kept for the backward pass, per event and block, in units of the layer widths; counted in
# the graph and checked against measured peaks (tests/training/test_memory.py).
_HIDDEN_KEPT, _FFN_KEPT, _SCORES_KEPT = 12, 6, 2
_LOGITS_KEPT = 4
# blocks whose values live at once while they are recomputed
_BLOCKS_RECOMPUTED = 3


def estimated_bytes(config: MidiGeneratorConfig, parameters: int) -> int:
    """Peak memory of a training step, right to about a third.

    Args:
        config: the run.
        parameters: number of weights.
    """
    model, training = config.model, config.training
    # fp32 weights, gradients and two moments; an average and a second gradient where they exist
    copies = 4 + (training.ema_decay > 0) + (training.grad_accum_steps > 1)
    item = 4 if training.precision == "fp32" else 2
    length = config.data.sequence_length
    events = training.batch_size * length
    block = (
        _HIDDEN_KEPT * model.hidden_dim
        + _FFN_KEPT * model.ffn_dim
        + _SCORES_KEPT * model.num_heads * length
    )
    if training.gradient_checkpointing:
        alive = min(_BLOCKS_RECOMPUTED, model.num_layers)
        kept = alive * block + model.num_layers * model.hidden_dim
    else:
        kept = model.num_layers * block
    half_weights = parameters * item if item < 4 else 0
    logits = _LOGITS_KEPT * 4 * model.vocab_size
    return parameters * 4 * copies + half_weights + events * (kept * item + logits)


def physical_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(config: MidiGeneratorConfig, parameters: int, available: int) -> None:
    """Refuse a run that this machine would kill.

    Args:
        config: the run.
        parameters: number of weights.
        available: bytes there are at the most.

    Raises:
        KmidiError: when the estimate is above `available`, with the settings to change.
    """
    needed = estimated_bytes(config, parameters)
    if needed <= available:
        return
    raise KmidiError(
        f"this run needs about {needed / 1e9:.0f} GB and there are {available / 1e9:.0f}: give "
        "--config configs/m4_16gb.yaml, or lower training.batch_size (and raise "
        "training.grad_accum_steps), lower data.sequence_length, or set "
        "training.gradient_checkpointing=true; if you know better, set training.memory_gb."
    )
