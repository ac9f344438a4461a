"""Runs in Weights & Biases, online or, with WANDB_MODE=offline, in the checkpoint folder alone."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.runs.tracker import Tracker, grouped

#: Which run of the service a checkpoint folder is, and what it has been told.
IDENTITY = "wandb.json"


def complaint() -> str | None:
    """Return what keeps it from working, as a sentence; None: nothing."""
    if wandb.setup().settings.mode != "online":
        return None
    try:
        wandb.login(verify=False)
    except wandb.errors.UsageError:
        return (
            "--tracker wandb needs an account: log in with `wandb login`, or set "
            "WANDB_MODE=offline to keep everything on this machine."
        )
    return None


def make_tracker(folder: Path, project: str) -> Tracker:
    """Make a tracker of a run that keeps its files in its checkpoint folder."""
    return WandbTracker(folder, project)


class WandbTracker(Tracker):
    """Reports to a run of the service that a resumed training goes on with.

    Training repeats the steps after its last save with the same numbers; those that the run has
    been told already are not told again.

    Args:
        folder: checkpoint folder.
        project: of the service.
    """

    def __init__(self, folder: Path, project: str) -> None:
        self._folder = folder
        self._project = project
        # last step by name of a number
        self._told: dict[str, int] = {}
        self._id = ""

    def start(self, about: dict[str, Any], step: int) -> None:
        """Begin a run, or go on with the one that the folder names; raises what wandb raises."""
        self._id = secrets.token_hex(4)
        if step:
            self._recall()
        self._remember()
        self._run = wandb.init(
            project=self._project,
            id=self._id,
            name=self._folder.name,
            resume="allow",
            dir=self._folder,
            config=about,
            # no console, no code, no names of the machine: only what the run says of itself
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_meta=True
            ),
        )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Tell numbers that have not been told yet."""
        new = {name: value for name, value in values.items() if self._told.get(name, -1) < step}
        if new:
            self._run.log({grouped(name): value for name, value in new.items()}, step=step)
            self._told |= dict.fromkeys(new, step)
            self._remember()

    def add_samples(self, step: int, files: Sequence[Path]) -> None:
        """Show pictures and sounds; a MIDI file becomes a file of the run."""
        if self._told.get("samples", -1) >= step:
            return
        shown: dict[str, Any] = {}
        for file in files:
            if file.suffix == ".png":
                shown["samples/picture"] = wandb.Image(str(file), caption=file.stem)
            elif file.suffix == ".wav":
                shown["samples/sound"] = wandb.Audio(str(file), caption=file.stem)
            elif file.suffix == ".mid":
                # a copy: the run's folder may be taken elsewhere before it is sent
                copy = Path(self._run.dir) / "samples" / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                self._run.save(str(copy), base_path=self._run.dir, policy="now")
        self._run.log(shown, step=step)
        self._told["samples"] = step
        self._remember()

    def finish(self, reason: str) -> None:
        """Tell how the run ended, and wait until everything is sent or written."""
        self._run.summary["end"] = reason
        self._run.finish(exit_code=int(reason in ("failed", "lost")))

    def _recall(self) -> None:
        try:
            kept = json.loads((self._folder / IDENTITY).read_text("utf-8"))
            self._id, self._told = str(kept["id"]), dict(kept["told"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # tracked from here on

    def _remember(self) -> None:
        kept = {"id": self._id, "project": self._project, "told": self._told}
        write_bytes_atomically(self._folder / IDENTITY, json.dumps(kept).encode())
