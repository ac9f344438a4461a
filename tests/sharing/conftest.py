from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_double import HubDouble
from relabelling import relabel

from kmidi_mlx import checkpoint
from kmidi_mlx.config_file import config_from_dict, config_to_dict, load_config, save_config


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """A hub of our own, and nobody logged in."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubDouble() as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            double.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield double


@pytest.fixture
def model(tiny_run: Path, tmp_path: Path) -> Path:
    """The folder of a trained tiny generator, its data under a known licence."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_run, folder)
    relabel(folder / checkpoint.BEST, data_licences=["MIT"])
    return folder


@pytest.fixture
def with_adapter(model: Path) -> Path:
    """The same folder with an adapter called mine."""
    _, known = checkpoint.load_arrays(model / checkpoint.BEST)
    folder = model / checkpoint.ADAPTERS / "mine"
    plain = config_to_dict(config_from_dict(known["config"], "model"))
    plain["adapter"] |= {"method": "lora", "base": str(model.resolve())}
    base = {"name": model.name, "digest": "0123456789abcdef"}
    arrays = {"blocks.0.attention.qkv.inward": np.ones((64, 4), np.float32)}
    checkpoint.save_arrays(
        folder / checkpoint.ADAPTER, arrays, {**known, "config": plain, "base": base}
    )
    config = config_from_dict(plain, "adapter")
    save_config(config, folder / checkpoint.ADAPTER_CONFIG)
    assert load_config(config.name, [folder / checkpoint.ADAPTER_CONFIG]) == config
    return model
