"""How much there is to compute in a run: steps, and operations of a token or a cloud."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.point_codes import CODE_DIM

__all__ = ["Work", "flop_of_cloud", "flop_of_token", "model_of_data", "work_of"]

# a backward pass computes twice what the forward pass does
_PASSES = 3


@dataclass(frozen=True)
class Work:
    """What a run asks for.

    Attributes:
        model: its name.
        unit: what is counted, tokens or clouds.
        precision: of `training.precision`.
        row: tokens in a row of a batch, or points of a cloud; what a speed depends on.
        units_per_pass: of a forward and backward pass.
        passes: of an optimiser step.
        steps: at the most.
        steps_per_epoch: None where the data are not known.
        flop_per_unit: operations of matrix products, forwards and backwards, without
            recomputation; a causal mask saves none.
        evaluation_share: time for evaluations over time for training.
    """

    model: str
    unit: str
    precision: str
    row: int
    units_per_pass: int
    passes: int
    steps: int
    steps_per_epoch: int | None
    flop_per_unit: float
    evaluation_share: float

    @property
    def units_per_step(self) -> int:
        """Tokens or clouds of an optimiser step."""
        return self.units_per_pass * self.passes

    def epochs(self, steps: int) -> float | None:
        """Passes over the data that so many steps are; None where the data are not known."""
        return steps / self.steps_per_epoch if self.steps_per_epoch else None


def work_of(config: RunConfig, data: Path | None = None) -> Work:
    """Return what a run asks for.

    Args:
        config: of the generator or of Spectocloud.
        data: what it learns from; None: not known, the run has `training.max_steps` steps.

    Raises:
        KmidiError: for another model, or data that cannot be used.
    """
    training = config.training
    if isinstance(config, MidiGeneratorConfig):
        unit, row, flop = "tokens", config.data.sequence_length, flop_of_token(config)
        in_row = row
    elif isinstance(config, SpectocloudConfig):
        unit, row, flop = "clouds", config.data.points, flop_of_cloud(config)
        in_row = 1
    else:
        raise KmidiError(f"{config.name} is trained in minutes on any computer; rent nothing.")
    steps_per_epoch = None if data is None else _steps_per_epoch(config, data)
    steps = training.max_steps
    if steps_per_epoch is not None:
        steps = min(steps, training.epochs * steps_per_epoch)
    # an evaluation only goes forwards
    evaluated = training.eval_batches / _PASSES
    return Work(
        model=config.name,
        unit=unit,
        precision=training.precision,
        row=row,
        units_per_pass=training.batch_size * in_row,
        passes=training.grad_accum_steps,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        flop_per_unit=flop,
        evaluation_share=evaluated / (training.eval_every * training.grad_accum_steps),
    )


def model_of_data(folder: Path) -> str:
    """Return the name of the model that learns from a folder of prepared data.

    Raises:
        KmidiError: when it is no such folder.
    """
    try:
        described = json.loads((folder / "dataset.json").read_text("utf-8"))
        kind = described.get("kind", MidiGeneratorConfig.name)
    except (OSError, ValueError, AttributeError) as error:
        raise KmidiError(
            f"--data {folder} is no prepared data: give what `kmidi prepare midi` or "
            "`kmidi prepare spectocloud` made."
        ) from error
    return str(kind)


def _steps_per_epoch(config: MidiGeneratorConfig | SpectocloudConfig, data: Path) -> int:
    # imported late: most plans are made without data, and these take a second
    from kmidi_mlx.data.batches import MidiBatches
    from kmidi_mlx.data.cloud_batches import CloudBatches
    from kmidi_mlx.data.cloud_shards import CloudReader
    from kmidi_mlx.data.shards import ShardReader

    training = config.training
    size, seed = training.batch_size, training.seed
    batches: MidiBatches | CloudBatches
    if isinstance(config, MidiGeneratorConfig):
        batches = MidiBatches(ShardReader(data), "train", config.data, size, seed, True)
    else:
        reader = CloudReader(data)
        if not len(reader.split("train")):
            raise KmidiError(f"{data} has no clouds to learn from.")
        batches = CloudBatches(reader, "train", size, seed, config.data.points)
    return batches.steps_per_epoch(training.grad_accum_steps)


def flop_of_token(config: MidiGeneratorConfig) -> float:
    """Operations of one event of a window, forwards and backwards.

    Twice the weights of every matrix it meets, and attention to the whole window and to the
    context of the cross-attending blocks; what is made once a window is shared by its events.
    """
    model, time = config.model, config.data.sequence_length
    dim = model.hidden_dim
    slots = model.emotion_tokens + config.data.max_chords
    block = 2 * (4 * dim * dim + 3 * dim * model.ffn_dim) + 4 * time * dim
    crossing = 2 * 2 * dim * dim + 4 * slots * dim + slots * 4 * dim * dim / time
    blocks = model.num_layers * block + len(model.cross_attention_layers) * crossing
    return float(_PASSES * (blocks + 2 * dim * model.vocab_size))


def flop_of_cloud(config: SpectocloudConfig) -> float:
    """Operations of one cloud, forwards and backwards; what a batch makes once is shared by it."""
    model, points = config.model, config.data.points
    rows, columns = model.mel_bands // model.patch_size, model.window_frames // model.patch_size
    width = model.decoder_dim
    total, memory = 0, 0
    for stage, (dim, depth) in enumerate(zip(model.dims, model.depths, strict=True)):
        tokens = rows * columns // 4**stage
        # windows in the first stage, the whole map later
        seen = min(model.window_size, rows, columns) ** 2 if stage == 0 else tokens
        total += depth * tokens * (2 * (4 + 2 * model.mlp_ratio) * dim * dim + 4 * seen * dim)
        if stage:
            merged = 4 * model.dims[stage - 1] * dim
            total += 2 * tokens * (merged + dim * width)
            memory += tokens
        else:
            total += 2 * tokens * 3 * model.patch_size**2 * dim
    # what the points are is the same in the whole batch
    queries = 2 * points * (5 * CODE_DIM * width + 4 * width * width) / config.training.batch_size
    layer = 2 * points * (2 + 2 * model.mlp_ratio) * width * width
    layer += 4 * memory * width * width + 4 * points * memory * width
    return float(_PASSES * (total + queries + model.decoder_layers * layer))
