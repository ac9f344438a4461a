"""The task of a rented machine with tiny models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

# The script trains with PyTorch and exports (extra `export`); plans and tasks need neither.
_NEEDED = ("torch", "onnx", "onnxruntime", "onnxscript", "coremltools")
collect_ignore_glob = [] if all(map(find_spec, _NEEDED)) else ["test_cloud_script.py"]


@pytest.fixture(scope="session")
def tiny_task(
    tmp_path_factory: pytest.TempPathFactory,
    practice_data: Path,
    practice_clouds: Path,
    tiny_settings: list[str],
    tiny_cloud_settings: list[str],
) -> dict[str, str]:
    """The variables of a task that trains both models for a moment on a CPU."""
    folder = tmp_path_factory.mktemp("tiny-task")
    variables = {}
    for name, settings, data in (
        ("MIDI", tiny_settings, practice_data),
        ("CLOUD", tiny_cloud_settings, practice_clouds),
    ):
        sections: dict[str, dict[str, object]] = {}
        for setting in settings:
            option, _, value = setting.partition("=")
            section, _, key = option.partition(".")
            sections.setdefault(section, {})[key] = yaml.safe_load(value)
        sections["data"].pop("path")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections), "utf-8")
        variables[f"KMIDI_{name}_FLAGS"] = f"--config {folder / f'{name}.yaml'} --no-compile"
        variables[f"KMIDI_{name}_DATA"] = str(data)
    return variables | {
        "KMIDI_MODELS": "midi_generator spectocloud",
        "KMIDI_EXPORTS": "",
        "KMIDI_KEEP": "",
        "KMIDI_KEEP_EVERY": "0.3",
        "KMIDI_PRECISION": "fp32",
        "KMIDI_GPUS": "0",
        "AWS_ENDPOINT_URL": "",
    }
