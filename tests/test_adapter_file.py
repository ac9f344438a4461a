"""Adapters by name, by path, with a scale; and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.adapter_file import adapter_names, find_adapter, open_adapter, open_adapters
from kmidi_mlx.checkpoint import ADAPTER, save_arrays
from kmidi_mlx.config import MidiGeneratorConfig, SpectocloudConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError

ARRAYS = {"blocks.0.attention.out.lora_a": np.ones((64, 2), np.float32)}


def write(path: Path, **changes: Any) -> Path:
    config = MidiGeneratorConfig(adapter=AdapterConfig(method="lora", base="base", rank=2))
    metadata = {
        "model": "midi_generator",
        "config": config_to_dict(config),
        "base": {"name": "base", "digest": "12ab"},
    }
    save_arrays(path, changes.pop("arrays", ARRAYS), metadata | changes)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("mine", "yours", "a:0.5"):
        write(tmp_path / "adapters" / name / ADAPTER)
    return tmp_path


def test_they_are_found_by_name_path_and_scale(base: Path) -> None:
    assert adapter_names(base) == ["a:0.5", "mine", "yours"]
    mine = base / "adapters" / "mine" / ADAPTER
    assert find_adapter("mine", base) == (mine, 1.0)
    assert find_adapter("mine:0.7", base) == (mine, 0.7)
    assert find_adapter("mine:-1", base) == (mine, -1.0)
    assert find_adapter(f"{mine}:2", base) == (mine, 2.0)
    assert find_adapter(str(mine.parent), Path("elsewhere")) == (mine, 1.0)
    # a name that is there is meant before a scale is read into it
    assert find_adapter("a:0.5", base) == (base / "adapters" / "a:0.5" / ADAPTER, 1.0)
    assert find_adapter("a:0.5:2", base)[1] == 2.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nobody", "no adapter is called 'nobody'; .* has a:0.5, mine, yours."),
        ("", "no adapter is called ''"),
        (":1", "no adapter is called ''"),
        ("mine:", "cannot count '' times"),
        ("mine:loud", "cannot count 'loud' times; give a number from -4 to 4"),
        ("mine:nan", "cannot count 'nan' times"),
        ("mine:4.1", "cannot count '4.1' times"),
    ],
)
def test_what_is_not_there_is_said(base: Path, text: str, sentence: str) -> None:
    with pytest.raises(KmidiError, match=sentence):
        find_adapter(text, base)


def test_a_checkpoint_without_adapters_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"has none; `kmidi finetune --base .*` makes one"):
        find_adapter("mine", tmp_path)


def test_they_are_read_whole(base: Path) -> None:
    (mine, scale), (yours, _) = open_adapters(["mine:0.5", "yours"], base, "midi_generator")
    assert (mine.name, scale, yours.name) == ("mine", 0.5, "yours")
    assert mine.base == "12ab"
    assert mine.config.rank == 2
    assert mine.arrays.keys() == ARRAYS.keys()


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / ADAPTER)
    with pytest.raises(KmidiError, match="is for 'midi_generator'; one for 'spectocloud'"):
        open_adapter(path, "spectocloud")
    broken = {name: np.where(value == value, np.nan, 0).astype(np.float32)
              for name, value in ARRAYS.items()}  # fmt: skip
    with pytest.raises(KmidiError, match=r"NaN or Inf in blocks\.0\.attention\.out\.lora_a"):
        open_adapter(write(path, arrays=broken), "midi_generator")
    whole = config_to_dict(MidiGeneratorConfig())
    with pytest.raises(KmidiError, match="holds a whole model and no adapter"):
        open_adapter(write(path, config=whole), "midi_generator")
    write(path, config=config_to_dict(SpectocloudConfig()), model="spectocloud")
    with pytest.raises(KmidiError, match="is for 'spectocloud'"):
        open_adapter(path, "midi_generator")
    for config in (None, "lora", [1]):
        with pytest.raises(KmidiError, match="does not say how its adapters are made"):
            open_adapter(write(path, config=config), "midi_generator")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(KmidiError, match="not a readable safetensors file"):
        open_adapter(path, "midi_generator")
    with pytest.raises(KmidiError, match="no such checkpoint"):
        open_adapter(tmp_path / "none", "midi_generator")
