"""How much memory a training run will need, before it takes it."""

from __future__ import annotations

import os

from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.errors import KmidiError

# Values kept for the backward pass, per event and block, in units of the layer widths; counted in
# the graph and checked against measured peaks (tests/training/test_memory.py).
_HIDDEN_KEPT, _FFN_KEPT, _SCORES_KEPT = 12, 6, 2
_LOGITS_KEPT = 4
# blocks whose values live at once while they are recomputed
_BLOCKS_RECOMPUTED = 3
_UPDATE_COPIES = 9
# the same for a Swin block or decoder layer, per token, and for a point of a cloud in the loss
_TOKEN_KEPT, _MLP_KEPT, _POINT_KEPT = 12, 3, 400


def estimated_bytes(config: RunConfig, parameters: int, trained: int | None = None) -> int:
    """Peak memory of a training step, right to about a third.

    Args:
        config: the run.
        parameters: number of weights.
        trained: of them; None: all.
    """
    training = config.training
    trained = parameters if trained is None else trained
    frozen = 4 * (parameters - trained)
    # fp32 weights, gradients and two moments; an average and a second gradient where they exist
    copies = 4 + (training.ema_decay > 0) + (training.grad_accum_steps > 1)
    item = 4 if training.precision == "fp32" else 2
    half_weights = parameters * item if item < 4 else 0
    if isinstance(config, MidiGeneratorConfig):
        kept = _midi_bytes(config, item)
    elif isinstance(config, SpectocloudConfig):
        kept = _cloud_bytes(config, item)
    else:
        kept = 0
    working = frozen + trained * 4 * copies + half_weights + training.batch_size * kept
    # while the optimiser works, old and new weights, moments and average are there, and gradients
    updating = frozen + trained * 4 * (_UPDATE_COPIES + 2 * (training.ema_decay > 0))
    return max(working, updating)


def _midi_bytes(config: MidiGeneratorConfig, item: int) -> int:
    """Bytes kept for one window of events."""
    model, length = config.model, config.data.sequence_length
    block = (
        _HIDDEN_KEPT * model.hidden_dim
        + _FFN_KEPT * model.ffn_dim
        + _SCORES_KEPT * model.num_heads * length
    )
    if config.training.gradient_checkpointing:
        alive = min(_BLOCKS_RECOMPUTED, model.num_layers)
        kept = alive * block + model.num_layers * model.hidden_dim
    else:
        kept = model.num_layers * block
    return length * (kept * item + _LOGITS_KEPT * 4 * model.vocab_size)


def _cloud_bytes(config: SpectocloudConfig, item: int) -> int:
    """Bytes kept for one cloud."""
    model, points = config.model, config.data.points
    width = _TOKEN_KEPT + _MLP_KEPT * model.mlp_ratio
    tokens = [
        (model.mel_bands // side) * (model.window_frames // side)
        for side in (model.patch_size * 2**stage for stage in range(len(model.dims)))
    ]
    blocks: list[int] = []
    for stage, (dim, depth) in enumerate(zip(model.dims, model.depths, strict=True)):
        seen = tokens[stage] if stage else model.window_size**2
        scores = _SCORES_KEPT * (dim // model.head_dim) * seen
        blocks += [tokens[stage] * (width * dim + scores)] * depth
    if config.training.gradient_checkpointing:
        kept: int = max(blocks) + sum(
            depth * count * dim
            for depth, count, dim in zip(model.depths, tokens, model.dims, strict=True)
        )
    else:
        kept = sum(blocks)
    scores = _SCORES_KEPT * (model.decoder_dim // model.head_dim) * sum(tokens[1:])
    kept += model.decoder_layers * points * (width * model.decoder_dim + scores)
    return kept * item + points * _POINT_KEPT


def physical_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(
    config: RunConfig, parameters: int, available: int, trained: int | None = None
) -> None:
    """Refuse a run that this machine would kill.

    Args:
        config: the run.
        parameters: number of weights.
        available: bytes there are at the most.
        trained: how many of the weights are; None: all.

    Raises:
        KmidiError: when the estimate is above `available`, with the settings to change.
    """
    needed = estimated_bytes(config, parameters, trained)
    if needed <= available:
        return
    midi = isinstance(config, MidiGeneratorConfig)
    advice = "give --config configs/m4_16gb.yaml, or " if midi else ""
    shorter = "lower data.sequence_length, " if midi else ""
    raise KmidiError(
        f"this run needs about {needed / 1e9:.0f} GB and there are {available / 1e9:.0f}: {advice}"
        f"lower training.batch_size (and raise training.grad_accum_steps), {shorter}or set "
        "training.gradient_checkpointing=true; if you know better, set training.memory_gb."
    )
