"""The trackers that can be asked for beside JSON lines, and the flag that asks for them."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.tracker_process import ProcessTracker, child_command

__all__ = [
    "TRACKERS", "add_tracker_arguments", "check_trackers", "open_trackers", "project_of",
    "where_to_look",
]  # fmt: skip

#: What `--tracker` knows, and where one looks at it.
TRACKERS = {
    "tensorboard": "tensorboard --logdir {folder}",
    "wandb": "project {project} (after an offline run: wandb sync {folder}/wandb/offline-run-*)",
}
# what a run says of one that was not given the time to finish
_KEPT = {
    "wandb": "what it has not sent is kept in {folder}/wandb: wandb sync {folder}/wandb/*run-*",
}
# a check that does not answer asks a network; that is no reason to refuse a run
_CHECK_SECONDS = 30.0


def add_tracker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--tracker NAME`, repeatable; it lands in `trackers`, a list for `check_trackers`."""
    parser.add_argument(
        "--tracker",
        dest="trackers",
        metavar="NAME",
        action="append",
        default=[],
        choices=tuple(TRACKERS),
        help=f"also report to {' or '.join(TRACKERS)}; may be given more than once",
    )


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return trackers that can be used, each once.

    Args:
        names: of `TRACKERS`.

    Raises:
        KmidiError: when the package of one is not installed, or it wants a login.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise KmidiError(
                f"--tracker {name} needs a package that is not installed: pip install {name}."
            )
    if "wandb" in names:
        # it takes a second to import, and is not wanted in this process
        command = [*child_command("wandb"), "--check"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return names
        if done.returncode:
            raise KmidiError(done.stdout.strip() or "--tracker wandb: wandb cannot be imported.")
    return names


def open_trackers(names: Sequence[str], folder: Path, model: str) -> list[ProcessTracker]:
    """Make the trackers of a run.

    Args:
        names: as `check_trackers` returned them.
        folder: checkpoint folder, where they keep what they write.
        model: that is trained, as in its configuration.
    """
    return [
        ProcessTracker(
            name, folder, project_of(model), kept=_KEPT.get(name, "").format(folder=folder)
        )
        for name in names
    ]


def project_of(model: str) -> str:
    """Return the project that runs of a model belong to, such as `midi-generator`."""
    return model.replace("_", "-")


def where_to_look(names: Sequence[str], folder: Path, model: str) -> str:
    """Return a line for each tracker that says how one looks at what it is told."""
    lines = (
        f"see the run in {name}: {TRACKERS[name].format(folder=folder, project=project_of(model))}"
        for name in names
    )
    return "\n".join(lines)
