from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from small_models import same_bits

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import CloudDataConfig, SpectocloudConfig, TrainingConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.loading import load_generator, load_spectocloud
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.runs.memory import estimated_bytes, require_memory
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training.cloud_losses import cloud_losses
from kmidi_mlx.training.cloud_task import CloudTask, clouds_of
from kmidi_mlx.training.run import train_model
from kmidi_mlx.training.step import TrainStep


def config_of(settings: list[str]) -> SpectocloudConfig:
    config = load_config("spectocloud", [], settings)
    assert isinstance(config, SpectocloudConfig)
    return config


@pytest.fixture
def task(tiny_cloud_settings: list[str], practice_clouds: Path) -> CloudTask:
    return CloudTask(config_of(tiny_cloud_settings), CloudReader(practice_clouds))


def test_the_loss_is_the_sum_of_its_weighted_parts(task: CloudTask) -> None:
    with task.stream(0) as batches:
        batch = next(batches)
    assert batch["clouds"].shape == (4, 100, 10)
    total, weight = task.loss_sum(task.model, batch)
    made = clouds_of(task.model, batch)
    parts = cloud_losses(made, batch["clouds"], task.config.loss)
    expected = sum(
        getattr(task.config.loss, name) * getattr(parts, name)
        for name in ("chamfer", "color", "properties", "smoothness", "identity")
    )
    assert weight.item() == 4
    assert total.item() == pytest.approx(mx.sum(expected).item(), rel=1e-5)


def test_the_queries_drawn_are_those_of_the_points_compared(task: CloudTask) -> None:
    with task.stream(0) as batches:
        batch = next(batches)
    constants = task.model.constants(1200)
    inputs = (batch["windows"], batch["features"], batch["emotion"])
    whole = np.array(task.model(*inputs, constants))
    made = np.array(clouds_of(task.model, batch))
    np.testing.assert_allclose(made, whole[:, np.array(batch["point_indices"])], atol=1e-5)


def test_evaluation_is_repeatable_and_sees_the_weights(task: CloudTask) -> None:
    first = task.evaluate()
    assert set(first) == {"val_loss", "val_chamfer"}
    assert task.evaluate() == first
    task.model.head.bias = task.model.head.bias + 3.0
    assert task.evaluate()["val_loss"] > first["val_loss"]


def test_a_sample_shows_teacher_and_network(task: CloudTask, tmp_path: Path) -> None:
    task.write_sample(tmp_path / "samples", 10, 1)
    with Image.open(tmp_path / "samples" / "step-000010.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (480, 1280, 3)
    assert np.abs(shown[:, :640].astype(int) - shown[:, 640:]).max() > 50


def test_training_learns_and_the_weights_can_be_used(
    tiny_cloud_settings: list[str], tmp_path: Path
) -> None:
    config = config_of([*tiny_cloud_settings, "training.max_steps=120", "training.eval_every=30"])
    with checkpoint.exclusive(tmp_path):
        outcome = train_model(config, tmp_path, False, Interruption())
    assert (outcome.unit, outcome.synthetic) == ("clouds", True)
    lines = [json.loads(line) for line in (tmp_path / checkpoint.METRICS).read_text().splitlines()]
    judged = [line["val_loss"] for line in lines if "val_loss" in line]
    assert judged[-1] < 0.88 * judged[0]
    loaded = load_spectocloud(tmp_path)
    assert loaded.notice is not None
    clouds = loaded.model(
        mx.zeros((1, 128, 64)), mx.zeros((1, 32)), mx.zeros((1, 64)), loaded.model.constants(200)
    )
    assert clouds.shape == (1, 200, 10)
    with pytest.raises(KmidiError, match="'spectocloud'; a 'midi_generator' is needed"):
        load_generator(tmp_path)


def test_a_stopped_run_ends_like_one_that_was_not(
    tiny_cloud_settings: list[str], tmp_path: Path
) -> None:
    def run(folder: Path, steps: int, resume: bool) -> Outcome:
        config = config_of([*tiny_cloud_settings, "training.grad_accum_steps=2"])
        training = dataclasses.replace(config.training, max_steps=20)
        interruption = Interruption()
        config = dataclasses.replace(config, training=training)
        with checkpoint.exclusive(folder):
            if steps < 20:
                interruption = _StopAfter(steps)
            return train_model(config, folder, resume, interruption)

    assert run(tmp_path / "one", 20, False).reason == "finished"
    assert run(tmp_path / "two", 7, False).reason == "interrupted"
    assert run(tmp_path / "two", 20, True).reason == "finished"
    one, two = (
        checkpoint.load_arrays(tmp_path / name / checkpoint.LAST)[0] for name in ("one", "two")
    )
    assert same_bits(one, two)


class _StopAfter(Interruption):
    """Asks for a stop when it has been asked often enough."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def test_data_without_a_side_is_refused(tmp_path: Path, tiny_cloud_settings: list[str]) -> None:
    from kmidi_mlx.data.cloud_prepare import prepare_clouds

    prepare_clouds([], tmp_path / "one", synthetic=1, samples=2, workers=1)
    with pytest.raises(KmidiError, match="no clouds in 'val'"):
        CloudTask(config_of(tiny_cloud_settings), CloudReader(tmp_path / "one"))


@pytest.mark.parametrize(("batch", "points", "checkpointing"), [(8, 300, False), (16, 100, True)])
def test_the_memory_estimate_is_right_to_about_a_third(
    batch: int, points: int, checkpointing: bool
) -> None:
    config = SpectocloudConfig(
        data=CloudDataConfig(points=points),
        training=TrainingConfig(
            batch_size=batch, gradient_checkpointing=checkpointing, ema_decay=0.9
        ),
    )
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = SpectocloudViT(config.model)
    model.initialise(0)
    model.checkpoint_blocks = checkpointing

    def loss_sum(net: SpectocloudViT, batch: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        losses = cloud_losses(clouds_of(net, batch), batch["clouds"], config.loss)
        return mx.sum(losses.total(config.loss)), mx.array(1.0)

    step = TrainStep(model, loss_sum, config.optimizer, config.training, batch)
    step.run(
        [
            {
                "windows": mx.zeros((batch, 128, 64)),
                "features": mx.zeros((batch, 32)),
                "emotion": mx.zeros((batch, 64)),
                "clouds": mx.random.uniform(shape=(batch, points, 10)),
                "point_indices": mx.arange(points),
            }
        ],
        1e-4,
    )
    parameters = sum(array.size for _, array in tree_flatten(model.parameters()))
    peak = mx.get_peak_memory() - before
    assert 0.6 < estimated_bytes(config, parameters) / peak < 1.6
    with pytest.raises(
        KmidiError, match=r"needs about \d+ GB and there are 0: lower training.batch"
    ):
        require_memory(config, parameters, 10**6)
