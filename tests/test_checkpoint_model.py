"""Opening weights: from a folder or a file, refused in one sentence where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint_model import built, open_weights
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.torch_file import write_torch_file


def test_a_folder_with_a_torch_file_alone_can_be_used(tmp_path: Path, tiny_run: Path) -> None:
    arrays, metadata = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    write_torch_file(tmp_path / checkpoint.BEST_TORCH, arrays, metadata)
    weights = open_weights(tmp_path, MidiGeneratorConfig)
    assert weights.path == tmp_path / checkpoint.BEST_TORCH
    assert weights.arrays.keys() == arrays.keys()
    assert load_generator(tmp_path).config == weights.config


def test_safetensors_come_first(tmp_path: Path, tiny_run: Path) -> None:
    arrays, metadata = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    write_torch_file(tmp_path / checkpoint.BEST_TORCH, {}, {})
    checkpoint.save_arrays(tmp_path / checkpoint.BEST, arrays, metadata)
    assert open_weights(tmp_path, MidiGeneratorConfig).path == tmp_path / checkpoint.BEST


def test_without_a_configuration_the_way_out_is_told(tmp_path: Path, tiny_run: Path) -> None:
    arrays, _ = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    checkpoint.save_arrays(tmp_path / checkpoint.BEST, arrays, {"model": "midi_generator"})
    with pytest.raises(KmidiError, match="kmidi convert --model"):
        open_weights(tmp_path, MidiGeneratorConfig)


@pytest.mark.parametrize("width", [2**40, 2**70])
def test_impossible_sizes_are_one_sentence(tmp_path: Path, tiny_run: Path, width: int) -> None:
    arrays, metadata = checkpoint.load_arrays(tiny_run / checkpoint.BEST)
    metadata["config"]["model"]["ffn_dim"] = width
    checkpoint.save_arrays(tmp_path / checkpoint.BEST, arrays, metadata)
    with pytest.raises(KmidiError, match=r"cannot be|does not fit|too large"):
        load_generator(tmp_path)


def test_other_mistakes_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        built(lambda: 1 / 0, tmp_path)
