"""Sources that cannot be used: one sentence, and nothing is written or replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoint import METADATA, make, untouched, weights

from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint import load_arrays, save_arrays
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import Arrays, write_torch_file


def changed(**changes: Any) -> Arrays:
    return {k: v for k, v in (weights() | changes).items() if v is not None}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("arrays", "metadata", "order", "complaint"),
    [
        (
            changed(
                **{
                    "emotion_out.bias": None,
                    "extra.weight": np.ones(2, np.float32),
                    "final_norm.weight": np.ones(65, np.float32),
                }
            ),
            METADATA,
            {},
            r"does not fit this model; missing: emotion_out\.bias; unexpected: extra\.weight; "
            r"misshapen: final_norm\.weight is \(65,\), not \(64,\)",
        ),
        (
            changed(**{"final_norm.weight": np.full(64, np.nan, np.float32)}),
            METADATA,
            {},
            r"holds NaN or Inf in final_norm\.weight",
        ),
        (
            changed(**{"final_norm.weight": np.ones(64, np.int64)}),
            METADATA,
            {},
            r"holds int64 numbers in final_norm\.weight, not floats",
        ),
        (weights(), METADATA | {"model": "chess"}, {}, "holds 'chess', not one of midi_generator"),
        (weights(), METADATA | {"model": ["a"]}, {}, r"holds \['a'\], not one of"),
        (weights(), METADATA | {"config": "large"}, {}, "holds 'midi_generator', not one of"),
        (weights(), METADATA | {"model": "spectocloud"}, {}, "describes a 'midi_generator', not"),
        (
            weights(),
            METADATA | {"config": {"name": "midi_generator", "model": {"hiden_dim": 3}}},
            {},
            "hiden_dim",
        ),
        (
            weights(),
            METADATA | {"config": {"name": "midi_generator", "model": {"ffn_dim": 2**40}}},
            {},
            "describes a network that cannot be",
        ),
        (weights(), METADATA, {"model": "spectocloud"}, "not the 'spectocloud' you name"),
        (
            weights(),
            METADATA,
            {"model": "midi_generator", "config_files": [Path("c.yaml")]},
            "says itself how its model is built; leave out --config",
        ),
        (weights(), METADATA, {"state": True}, "holds weights and no training state"),
        ({}, METADATA, {}, "does not fit this model; missing"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_source_that_cannot_be_used_changes_nothing(
    tmp_path: Path,
    arrays: Arrays,
    metadata: dict[str, Any],
    order: dict[str, Any],
    complaint: str,
    force: bool,
    suffix: str,
) -> None:
    source, target = tmp_path / f"source{suffix}", tmp_path / "target.pt"
    if suffix == ".pt":
        write_torch_file(source, arrays, metadata)
    else:
        save_arrays(source, arrays, metadata)
    if force:
        target.write_bytes(b"precious")
    before = untouched(tmp_path)
    with pytest.raises(KmidiError, match=complaint):
        make(source, target, force=force, **order)
    assert untouched(tmp_path) == before


def test_a_newer_format_and_a_truncated_file_are_refused(source: Path, tmp_path: Path) -> None:
    newer = METADATA | {"format_version": checkpoint.FORMAT_VERSION + 1}
    write_torch_file(tmp_path / "newer.pt", weights(), newer)
    with pytest.raises(KmidiError, match=r"newer\.pt has format version 2"):
        make(tmp_path / "newer.pt", tmp_path / "out.safetensors")
    make(source, tmp_path / "best.pt")
    for file in (source, tmp_path / "best.pt"):
        short = tmp_path / f"short{file.suffix}"
        short.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(KmidiError, match=r"truncated|not a readable safetensors file"):
            make(short, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_state_with_missing_and_other_parts_is_refused(state: Path, tmp_path: Path) -> None:
    arrays, metadata = load_arrays(state)
    del arrays["optimizer.states.0.blocks.0.attention.qkv.weight.m"]
    arrays["optimizer.states.2.step"] = arrays.pop("optimizer.states.0.step")
    arrays["average.final_norm.weight"] = np.ones(3, np.float32)
    save_arrays(tmp_path / "other.safetensors", arrays, metadata)
    with pytest.raises(
        KmidiError,
        match=r"missing: optimizer\.states\.0\.step, .*qkv\.weight\.m; "
        r"unexpected: optimizer\.states\.2\.step; "
        r"misshapen: average\.final_norm\.weight",
    ):
        make(tmp_path / "other.safetensors", tmp_path / "out.pt", state=True)


def test_a_full_disk_leaves_the_old_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "best.pt"
    make(source, target)
    before = untouched(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for path in (target, tmp_path / "new.safetensors"):
        with pytest.raises(KmidiError, match="No space left on device"):
            make(source, path, force=True)
    assert untouched(tmp_path) == before
