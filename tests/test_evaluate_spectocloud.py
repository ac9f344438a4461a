from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx import checkpoint
from kmidi_mlx.command import run
from kmidi_mlx.config import SpectocloudConfig, SpectocloudVitConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.data.cloud_sampling import Pairs
from kmidi_mlx.data.cloud_shards import write_dataset, write_shard
from kmidi_mlx.evaluate import main
from kmidi_mlx.evaluate_kinds import KINDS, find_kind
from kmidi_mlx.evaluation.cloud_ladder import NETWORK, RUNGS
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

SONGS, PAIRS = 4, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four songs of three pairs; two of them are held out."""
    folder, rng = tmp_path_factory.mktemp("clouds"), np.random.default_rng(0)
    pairs = Pairs.empty(SONGS * PAIRS)
    pairs.clouds[:] = rng.uniform(0, 1, pairs.clouds.shape)
    pairs.mel[:] = rng.integers(0, 256, pairs.mel.shape)
    pairs.features[:] = rng.uniform(-1, 1, pairs.features.shape)
    pairs.emotion[:] = rng.uniform(0, 1, pairs.emotion.shape)
    write_shard(folder, 0, [(f"song {k}", PAIRS) for k in range(SONGS)], [pairs])
    songs = np.arange(SONGS, dtype=np.int32)
    columns: dict[str, NDArray[Any]] = {
        "shard": np.zeros(SONGS, np.int32),
        "row": PAIRS * songs,
        "pairs": np.full(SONGS, PAIRS, np.int32),
        "split": np.array([0, 1, 0, 1], np.uint8),
        "song": songs,
        "group": songs,
    }
    write_dataset(folder, columns, {"synthetic": True, "licences": [], "labels_text": "none"})
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectocloud")
    config = SpectocloudConfig(
        model=SpectocloudVitConfig(dims=(64, 64), depths=(1, 1), patch_size=8)
    )
    network = SpectocloudViT(config.model)
    network.initialise(0)
    arrays = {name: np.asarray(value) for name, value in tree_flatten(network.parameters())}
    metadata = {
        "model": "spectocloud",
        "config": config_to_dict(config),
        "step": 9,
        "synthetic": False,
    }
    checkpoint.save_arrays(folder / checkpoint.BEST, arrays, metadata)
    return folder


def test_all_rungs_are_measured(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--model spectocloud --checkpoint {trained} --data {data} --json --batch-size 4"
    assert run(main, flags.split()) == 0
    captured = capsys.readouterr()
    assert "climb: " in captured.err
    result = json.loads(captured.out)
    assert (result["model"], result["step"], result["split"]) == ("spectocloud", 9, "val")
    assert (result["pairs"], result["songs"], result["points"]) == (6, 2, 1200)
    assert list(result["rungs"]) == list(RUNGS)
    for rung in result["rungs"].values():
        assert rung["errors"]["chamfer"]["mean"] > 0
    assert result["rungs"][NETWORK]["over_network"]["mean"] == 0
    half = result["rungs"]["teacher, half the points"]
    assert half["over_network"]["mean"] < 0
    assert half["errors"]["movement"] == pytest.approx(1)
    assert half["errors"]["jitter"] == 0


def test_the_table_says_the_same(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--checkpoint {trained} --data {data} --split train --limit 2 --model spectocloud"
    assert run(main, flags.split()) == 0
    out = capsys.readouterr().out
    for words in ("2 pairs of frames, 2 songs", *RUNGS, "Chamfer", "jitter", "ms"):
        assert words in out
    assert all(len(line) <= 120 for line in out.splitlines()[1:])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "give --data DIR"),
        ("--data {data} --limit 0", "--limit 0: give 1 or more"),
        ("--data {data} --batch-size 0", "--batch-size 0: give 1 or more"),
        ("--data {data} --seed -1", "--seed -1: give 0 or more"),
        ("--data {data} --limit 1", "all of one song"),
        ("--data {data} --split test", "no clouds in 'test'"),
        ("--data nowhere", "there is no folder nowhere"),
        ("--data {data} --checkpoint nowhere", "no such checkpoint: nowhere"),
        ("--data {data} --midi x", "unknown option --midi"),
    ],
)
def test_wrong_use_is_one_line(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    given = ["--model", "spectocloud", *flags.format(data=data).split()]
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(trained)]
    assert run(main, given) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("kmidi evaluate: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert captured.out == ""


@pytest.mark.parametrize("name", KINDS)
def test_every_model_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"--model={name}", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert find_kind(name).DESCRIPTION in words
    for other in KINDS:
        assert (f"kmidi evaluate --model {other} --help" in out) == (other != name)
    assert ("--generate" in out) == (name == "midi_generator")
