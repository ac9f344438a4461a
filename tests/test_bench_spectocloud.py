"""What the cloud benchmark compares is the same thing, and it refuses what it cannot measure."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench import spectocloud
from bench.swin_peers import PACKAGES
from kmidi_mlx.command import run
from kmidi_mlx.training.cloud_losses import chamfer


def test_all_forms_of_the_chamfer_distance_agree() -> None:
    rng = np.random.default_rng(0)
    a, b = (mx.array(rng.uniform(-1, 1, (2, 50, 3)).astype(np.float32)) for _ in range(2))
    ours = np.array(chamfer(a, b))
    for form in (spectocloud.by_broadcast, spectocloud.by_product):
        np.testing.assert_allclose(np.array(form(a, b)), ours, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--repeats", "0"], "--repeats 0: give 1 or more"),
        (["--only", "detail"], "give --checkpoint DIR"),
        (["--only", "detail", "--checkpoint", "nowhere"], "no such checkpoint"),
        (["--only", "frame"], "pip install -e '.[peers]'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spectocloud, "missing_packages", lambda: list(PACKAGES))
    monkeypatch.setattr("bench.swin_peers.missing_packages", lambda: list(PACKAGES))
    assert run(spectocloud.main, arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1
