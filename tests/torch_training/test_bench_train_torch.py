from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import train_torch
from kmidi_mlx.command import run

TINY = {
    "midi_generator": [
        "model.hidden_dim=64", "model.num_layers=1", "model.num_heads=1", "model.ffn_dim=64",
        "model.cross_attention_layers=[0]", "data.sequence_length=16", "data.max_chords=4",
    ],
    "spectocloud": [
        "model.dims=[16, 32]", "model.depths=[1, 1]", "model.patch_size=8", "model.window_size=4",
        "model.head_dim=16", "model.condition_dim=16", "model.decoder_dim=32", "data.points=50",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "unit", "in_step"),
    [("midi_generator", "tokens", 2 * 4 * 16), ("spectocloud", "clouds", 2 * 4)],
)
def test_a_line_of_figures_per_model(
    tmp_path: Path, model: str, unit: str, in_step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [*TINY[model], "training.batch_size=4", "training.grad_accum_steps=2"]
    flags = [word for setting in sets for word in ("--set", setting)]
    file = tmp_path / "rows.jsonl"
    arguments = ["--only", model, "--device", "cpu", "--steps", "2", "--json", str(file), *flags]
    assert run(train_torch.main, arguments) == 0
    assert unit in capsys.readouterr().out
    row = json.loads(file.read_text())
    assert row[f"{unit}_per_second"] == pytest.approx(in_step / row["seconds"], rel=0.5)
    assert row["mfu"] is None
    assert row["gflop"] > 0
    assert row["loss_last"] < row["loss_first"]


def test_counted_operations_are_those_of_the_products() -> None:
    linear = torch.nn.Linear(5, 7, bias=False)
    batch = {"x": torch.zeros(3, 5)}
    counted = train_torch.flop(linear, lambda net, b: (net(b["x"]).sum(), torch.ones(())), batch)
    # forward and the gradient of the weights; nothing asks for that of the input
    assert counted == 2 * (2 * 3 * 5 * 7)
    assert linear.weight.grad is None


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989e12),
        ("NVIDIA H100 PCIe", "fp32", True, 378e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", False, 19.5e12),
        ("NVIDIA L40", "fp16", False, 181e12),
        ("NVIDIA RTX A1000", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", False, None),
    ],
)
def test_the_peak_of_a_device(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, tf32: bool, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = train_torch.peak_flops(torch.device("cuda", 0), precision, tf32)
    assert found == (expected and pytest.approx(expected))
    assert train_torch.peak_flops(torch.device("cpu"), precision, tf32) is None
