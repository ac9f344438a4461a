"""The tasks for rented machines: what SkyPilot makes of them is what docs/cloud.md promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmidi_mlx.command import run
from kmidi_mlx.train import train_parser
from kmidi_torch import plan
from tests.cloud.rented import CLOUD

TASKS = sorted(CLOUD.glob("*.yaml"))
TASKS.remove(CLOUD / "prices.yaml")
SCRIPT = (CLOUD / "train_both.sh").read_text("utf-8")
# SkyPilot needs older packages than kmidi does, so it lives in an environment of its own.
OWN = Path(sys.prefix) / "skypilot" / "bin" / "python"
SKYPILOT = sys.executable if find_spec("sky") else str(OWN)
INSTALL = f"python -m venv {OWN.parent.parent} && {OWN} -m pip install skypilot"

LOAD = """
import json, socket, sys
def refuse(*arguments):
    raise OSError("tests do not use the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import sky
from sky.clouds import CloudImplementationFeatures as Feature
from sky.utils import yaml_utils
def load(file, envs, secrets):
    try:
        task = sky.Task.from_yaml_config(
            yaml_utils.read_yaml(file),
            env_overrides=list(envs.items()),
            secrets_overrides=list(secrets.items()),
        )
    except ValueError as error:
        return {"refused": str(error)}
    (resources,) = task.resources
    unsupported = resources.cloud._unsupported_features_for_resources(resources)
    stop = resources.autostop_config
    return {
    "cloud": str(resources.cloud).lower(),
    "accelerators": resources.accelerators,
    "spot": resources.use_spot,
    "recovery": resources.job_recovery,
    "stops_after": stop and stop.down and stop.idle_minutes,
    "has_spot": Feature.SPOT_INSTANCE not in unsupported,
    "can_mount": Feature.STORAGE_MOUNTING not in unsupported,
    "mounts": {path: [each.name, each.mode.value] for path, each in task.storage_mounts.items()},
    "uploads": task.file_mounts,
    "workdir": task.workdir,
    "envs": task.envs,
    "setup": task.setup,
    "run": task.run,
    }
print(json.dumps([load(*each) for each in json.loads(sys.argv[1])]))
"""
# what a person gives on the command line, by task
GIVEN: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "aws": ({"KMIDI_BUCKET": "my-bucket"}, {}),
    "lambda": ({}, {}),
    **dict.fromkeys(
        ("runpod", "vast"),
        (
            {"KMIDI_KEEP": "s3://my-bucket/kmidi"},
            {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
        ),
    ),
}
GPUS = {"aws": "A10G", "lambda": "A100", "runpod": "RTX4090", "vast": "RTX4090"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], dict[str, Any]]:
    """What SkyPilot's own loader makes of the tasks, offline, in a project with prepared data.

    By the name of a task, and whether everything it asks for was given.
    """
    if not Path(SKYPILOT).exists():
        pytest.skip(f"needs SkyPilot: {INSTALL}")
    folder = tmp_path_factory.mktemp("project")
    for data in ("midi", "spectocloud"):
        (folder / "data" / data).mkdir(parents=True)
    cases = [(name, whole) for name in GIVEN for whole in (True, False)]
    told = [
        (str(CLOUD / f"{name}.yaml"), GIVEN[name][0] if whole else {}, GIVEN[name][1])
        for name, whole in cases
    ]
    done = subprocess.run(
        [SKYPILOT, "-c", LOAD, json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env={"HOME": str(folder), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(cases, answers, strict=True))


Loaded = dict[tuple[str, bool], dict[str, Any]]


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_skypilot_understands_a_task(name: str, loaded: Loaded) -> None:
    task = loaded[name, True]
    assert "refused" not in task, task
    assert task["cloud"] == name
    assert task["accelerators"] == {GPUS[name]: 1}
    assert task["workdir"] == "."
    assert (task["setup"], task["run"]) == (
        "bash configs/cloud/install.sh",
        "bash configs/cloud/train_both.sh",
    )
    assert task["uploads"] == {
        "~/kmidi-data/midi": "data/midi",
        "~/kmidi-data/spectocloud": "data/spectocloud",
    }
    # spot wherever the provider has it, and then checkpoints outlive the machine
    assert task["spot"] == task["has_spot"] == (name != "lambda")
    if task["spot"]:
        assert task["recovery"] == {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 2}
        assert task["stops_after"] is None  # a managed job gives its machine back at once
    else:
        assert task["stops_after"] == 180
    kept = task["envs"]["KMIDI_KEEP"]
    if task["mounts"]:
        assert task["can_mount"]
        assert task["mounts"] == {kept: ["my-bucket", "MOUNT"]}
    else:
        assert kept.startswith("s3://") == task["spot"]


@pytest.mark.parametrize(
    ("name", "missing"), [("aws", "KMIDI_BUCKET"), ("runpod", "KMIDI_KEEP"), ("vast", "KMIDI_KEEP")]
)
def test_a_bucket_has_to_be_named(name: str, missing: str, loaded: Loaded) -> None:
    assert missing in loaded[name, False]["refused"]


def _declared(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def test_there_is_a_task_for_every_provider_with_a_price() -> None:
    assert [path.stem for path in TASKS] == sorted(GIVEN)
    assert set(_declared(CLOUD / "prices.yaml")) == set(GIVEN)
    for path in TASKS:
        name, _, count = _declared(path)["resources"]["accelerators"].partition(":")
        assert (name, count) == (GPUS[path.stem], "1")
        assert name in _declared(CLOUD / "prices.yaml")[path.stem]["gpus"]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_script_reads_what_a_task_declares(path: Path) -> None:
    task = _declared(path)
    read = set(re.findall(r"\b(?:KMIDI|AWS)_[A-Z_]+\b", SCRIPT))
    read -= {"KMIDI_PYTHON"}  # of tests
    used_elsewhere = {"KMIDI_BUCKET"} if path.stem == "aws" else set()
    assert set(task["envs"]) == read | used_elsewhere
    for name in used_elsewhere:
        assert "${" + name + "}" in json.dumps(task["file_mounts"])
    explained = SCRIPT[: SCRIPT.index("set -euo pipefail")]
    assert read == set(re.findall(r"#   ([A-Z_]+) ", explained))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_flags_of_a_task_are_those_of_training(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CLOUD.parent.parent)
    envs = _declared(path)["envs"]
    assert envs["KMIDI_PRECISION"] == "bf16"
    assert envs["KMIDI_MODELS"].split() == ["midi_generator", "spectocloud"]
    for model, variable in (("midi_generator", "MIDI"), ("spectocloud", "CLOUD")):
        flags = envs[f"KMIDI_{variable}_FLAGS"].split()
        parsed = train_parser("train", "").parse_args(["--model", model, *flags])
        assert parsed.config_files == [Path("configs") / f"{model}.yaml"]
        # whatever fits into memory: a step sees what the reference run's does
        told = ["--model", model, *flags, "--provider", path.stem, "--json"]
        assert run(plan.main, [*told, *(["--spot"] if path.stem == "aws" else [])]) == 0
        run(plan.main, ["--model", model, "--provider", path.stem, "--json"])
        ours, reference = map(json.loads, capsys.readouterr().out.splitlines())
        assert ours[0]["runs"][0]["of_steps"] == reference[0]["runs"][0]["of_steps"]


def test_scripts_are_bash_that_stops_at_errors() -> None:
    for path in sorted(CLOUD.glob("*.sh")):
        text = path.read_text("utf-8")
        assert text.startswith("#!/usr/bin/env bash\n"), path.name
        assert "\nset -euo pipefail\n" in text, path.name
        assert os.access(path, os.X_OK), path.name
        subprocess.run(["bash", "-n", str(path)], check=True)
