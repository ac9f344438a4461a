"""`kmidi convert --quantize` as a person meets it, and the way back."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_checkpoint import same, untouched

from kmidi_mlx import checkpoint
from kmidi_mlx.__main__ import main as kmidi
from kmidi_mlx.checkpoint import load_arrays, save_arrays
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import load_config
from kmidi_mlx.conversion import LOSS
from kmidi_mlx.evaluation import held_out
from kmidi_mlx.models.loading import load_generator, load_spectocloud
from kmidi_mlx.models.quantization import quantized_layers
from kmidi_mlx.quantization import DESCRIPTION, Packing, describe
from kmidi_mlx.training.run import train_model

UNMEASURED = ("--limit", "0")


@pytest.fixture(scope="module")
def tiny_clouds(tmp_path_factory: pytest.TempPathFactory, tiny_cloud_settings: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clouds"
    config = load_config("spectocloud", [], tiny_cloud_settings)
    with checkpoint.exclusive(folder):
        train_model(config, folder, False, Interruption())
    return folder


def run(*arguments: Path | str) -> int:
    return kmidi(["convert", *map(str, arguments)])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> dict[str, Any]:
    status = run(*arguments, "--json")
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["written"] == (status == 0)
    return told


@pytest.mark.parametrize("bits", [8, 4])
def test_size_speed_and_loss_are_told(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: int
) -> None:
    told = run_json(capsys, tiny_run, tmp_path, "--quantize", str(bits))
    file = tmp_path / checkpoint.BEST
    assert told["path"] == str(file)
    assert file.stat().st_size == pytest.approx(told["bytes_after"], abs=20_000)
    assert told["bytes_after"] < told["bytes_before"] * {8: 0.45, 4: 0.35}[bits]
    assert min(told["before"]["milliseconds"], told["after"]["milliseconds"]) > 0
    assert told["after"]["unit"] == "event"
    for pace in (told["before"], told["after"]):
        ends = pace["quick_milliseconds"], pace["slow_milliseconds"]
        assert 0 < ends[0] <= pace["milliseconds"] <= ends[1]
    assert told["difference"] < 1e-4
    assert told["plain"] == told["notices"] == []
    (loss,) = told["losses"]
    assert loss["unit"] == "nats per event"
    assert loss["growth"] == pytest.approx(loss["after"] - loss["before"])
    assert 0 < abs(loss["growth"]) < {8: 1e-3, 4: 0.03}[bits]  # now 3e-5, 2e-3

    before, after = (load_arrays(path)[1] for path in (tiny_run / checkpoint.BEST, file))
    assert after == before | {
        DESCRIPTION: describe({n: Packing(**p) for n, p in told["layers"].items()}),
        LOSS: {"data": told["data"], "losses": [loss]},
    }
    assert told["data"] == before["config"]["data"]["path"]
    # the loss of the run itself was measured on the same windows, as far as it looked
    assert loss["before"] == pytest.approx(before["metric"], rel=0.1)


def test_the_table_says_it_to_people(
    tiny_clouds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--quantize", "6", "--limit", "4", "--layer-bits", "mlp=8", "--keep", "merges")
    assert run(tiny_clouds, tmp_path / "small.safetensors", *flags) == 0
    shown = capsys.readouterr().out
    for words in (
        "size, MB", "ms per cloud", "Chamfer distance", "loss of training", "6 bits in groups of",
        "8 bits in groups of", "ms: median (10th to 90th percentile)",
        "loss of the dequantised weights on ",
        f"wrote {tmp_path / 'small.safetensors'}",
    ):  # fmt: skip
        assert words in shown
    packed = quantized_layers(load_spectocloud(tmp_path / "small.safetensors", packed=True).model)
    assert packed["stages.1.0.mlp.up"].bits == 8
    assert packed["stages.1.0.attention.qkv"].bits == 6
    assert "merges.0.reduction" not in packed


def test_a_person_can_play_what_was_quantised(tiny_run: Path, tmp_path: Path) -> None:
    small, back = tmp_path / "q" / "best.safetensors", tmp_path / "back.safetensors"
    assert run(tiny_run, small, "--quantize", "4", *UNMEASURED) == 0
    assert run(small, back, "--dtype", "fp32") == 0
    flags = ["--seconds", "2", "--seed", "3", "--emotion", "happy"]
    for number, weights in enumerate((small.parent, back)):
        out = str(tmp_path / f"{number}.mid")
        assert kmidi(["generate", "--checkpoint", str(weights), *flags, "--out", out]) == 0
    assert (tmp_path / "0.mid").read_bytes() == (tmp_path / "1.mid").read_bytes()


def test_the_way_back_gives_what_mlx_computes_with(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    assert run(tiny_run, small, "--quantize", "6", *UNMEASURED) == 0
    capsys.readouterr()
    assert run(small, back, "--dtype", "fp32") == 0
    assert "note: 13 weights were quantised (6 bits in groups of 64) and are" in (
        capsys.readouterr().out
    )
    arrays, metadata = load_arrays(back)
    assert metadata == load_arrays(tiny_run / checkpoint.BEST)[1]
    model = load_generator(small, mx.float32, packed=True).model
    held = dict(tree_flatten(model.parameters()))
    for name, packing in quantized_layers(model).items():
        parts = [held[f"{name}.{part}"] for part in ("weight", "scales", "biases")]
        plain = mx.dequantize(*parts, packing.group_size, packing.bits)
        assert np.array_equal(arrays[f"{name}.weight"], np.array(plain))
    # and once more loses nothing worth telling, but says that it was lossy before
    assert run(small, tmp_path / "again", "--quantize", "6", *UNMEASURED) == 0
    assert "what quantising lost stays lost" in capsys.readouterr().out


def test_the_same_checkpoint_gives_the_same_file(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(tiny_run, tmp_path / name, "--quantize", "4", *UNMEASURED) == 0
    same(tmp_path / "a" / checkpoint.BEST, tmp_path / "b" / checkpoint.BEST)
    assert run(tiny_run, tmp_path / "c", "--quantize", "4", "--dtype", "fp32", *UNMEASURED) == 0
    wide = load_arrays(tmp_path / "c" / checkpoint.BEST)[0]
    assert {array.dtype.name for array in wide.values()} == {"uint32", "float32"}


@pytest.mark.parametrize("as_json", [False, True])
def test_too_much_loss_writes_nothing(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    def grown(*_: Any) -> list[held_out.Loss]:
        return [held_out.Loss("nats per event", 3.0, 3.5, 0.5, None)]

    monkeypatch.setattr("kmidi_mlx.evaluation.compression.compare", grown)
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    before = untouched(tmp_path)
    flags = ["--quantize", "4", "--limit", "4", "--force", *(["--json"] if as_json else [])]
    target = tmp_path / "old.safetensors"
    assert run(tiny_run, target, *flags, "--max-loss", "0.4") == 1
    shown = capsys.readouterr()
    assert "not written: nats per event would grow by 0.5, more than --max-loss 0.4" in shown.err
    assert '"written": false' in shown.out if as_json else "0.5" in shown.out
    assert untouched(tmp_path) == before
    assert run(tiny_run, target, *flags, "--max-loss", "0.6") == 0
    assert untouched(tmp_path) != before


def test_without_its_data_a_generator_is_judged_by_the_shipped_pieces(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, metadata = load_arrays(tiny_run / checkpoint.BEST)
    metadata["config"]["data"]["path"] = str(tmp_path / "gone")
    save_arrays(tmp_path / "moved.safetensors", arrays, metadata)
    flags = ("--quantize", "8", "--limit", "4")
    told = run_json(capsys, tmp_path / "moved.safetensors", tmp_path / "out", *flags)
    assert told["data"] == held_out.SHIPPED
    assert told["losses"][0]["before"] > 1
    assert not list(Path(tmp_path).glob("data"))


def test_without_its_data_a_cloud_network_is_not_judged(
    tiny_clouds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, metadata = load_arrays(tiny_clouds / checkpoint.BEST)
    metadata["config"]["data"]["path"] = "gone/clouds"
    moved = tmp_path / "moved.safetensors"
    save_arrays(moved, arrays, metadata)
    assert run(moved, tmp_path / "out", "--quantize", "8") == 0
    shown = capsys.readouterr().out
    assert "the loss was not measured" in shown
    assert (
        "note: the loss was not measured: gone/clouds is not there any more; give --data" in shown
    )
    assert LOSS not in load_arrays(tmp_path / "out" / checkpoint.BEST)[1]
    # who sets a bound wants it held
    assert run(moved, tmp_path / "bound", "--quantize", "8", "--max-loss", "1") == 2
    assert not (tmp_path / "bound").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--quantize", "5"], "unknown choice 5; choose from 8, 6, 4"),
        (["--keep", "head"], "--keep needs --quantize."),
        (["--max-loss", "1"], "--max-loss needs --quantize."),
        (["--quantize", "4", "--state"], "--quantize is for weights to use"),
        (["--quantize", "4", "--keep", "tail"], "is called 'tail'; there are"),
        (["--quantize", "4", "--layer-bits", "qkv"], "'qkv' is not NAME=BITS, as in head=8"),
        (["--quantize", "4", "--layer-bits", "qkv=5"], "'qkv=5' is not NAME=BITS"),
        (["--quantize", "4", "--limit", "-1"], "--limit -1: give 0 or more."),
        (["--quantize", "4", "--max-loss", "nan"], "--max-loss nan: give 0 or more."),
        (["--quantize", "4", "--limit", "0", "--max-loss", "1"], "--limit 0 measures no loss"),
        (["--quantize", "4", "--data", "gone"], "gone"),
    ],
)
def test_wrong_use_of_quantize_is_one_line(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    complaint: str,
) -> None:
    assert run(tiny_run, tmp_path / "out", *flags) == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert shown.startswith("kmidi convert: ")
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_torch_files_cannot_hold_packed_weights(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run, tmp_path / "best.pt", "--quantize", "8") == 2
    assert "quantised weights are MLX's; name a file that ends in .safetensors" in (
        capsys.readouterr().err
    )
    assert run(tiny_run, tiny_run, "--quantize", "8", "--force") == 2
    assert "cannot be converted into itself" in capsys.readouterr().err
    # a torch file can be the source
    assert run(tiny_run, tmp_path / "best.pt") == 0
    assert run(tmp_path / "best.pt", tmp_path / "a", "--quantize", "8", *UNMEASURED) == 0
    assert run(tiny_run, tmp_path / "b", "--quantize", "8", *UNMEASURED) == 0
    same(tmp_path / "a" / checkpoint.BEST, tmp_path / "b" / checkpoint.BEST)


@pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch (extra `torch`)")
def test_pytorch_points_at_mlx(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kmidi_mlx.command import run as run_command
    from kmidi_torch.convert import main

    arguments = [str(tiny_run), str(tmp_path / "out"), "--quantize", "8"]
    assert run_command(main, arguments) == 2
    assert "--quantize needs MLX" in capsys.readouterr().err
    # but makes plain weights of what MLX has quantised
    assert run(tiny_run, tmp_path / "q", "--quantize", "8", *UNMEASURED) == 0
    for command, name in ((main, "torch"), (lambda given: run(*given), "mlx")):
        assert command([str(tmp_path / "q"), str(tmp_path / name / "best.pt")]) in (0, None)
    one, two = ((tmp_path / name / "best.pt").read_bytes() for name in ("torch", "mlx"))
    assert one == two
