"""Fine-tuning a trained model on a person's own music: the plan and the report, any framework."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.checkpoint_model import open_weights
from kmidi_mlx.config import RUN_CONFIGS, MidiGeneratorConfig, RunConfig
from kmidi_mlx.config_file import load_config, save_config
from kmidi_mlx.data.personal import is_made_of, is_prepared
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.shipped import in_force, usual_checkpoint

__all__ = [
    "FinetunePlan",
    "Losses",
    "Memory",
    "about_base",
    "base_of",
    "losses_of",
    "original_music",
    "plan_finetuning",
    "save_memory",
    "settle_base",
    "usual_config",
]  # fmt: skip

_OWN_DATA, _SHIPPED_DATA = "data", "shipped-data"
# what a folder's name can hold, and `--adapter NAME:SCALE` can tell from a scale
_NO_NAME = re.compile(r"\.|.*[/\\:\0]", re.DOTALL)
_NAME_RULE = (
    "a name is that of a folder: letters, digits, spaces and signs but no / \\ or :, and no dot at "
    "its beginning"
)
# for a person who has not trained anything yet
_BASE_HINTS = {
    MidiGeneratorConfig.name: " with --base; `make run` and `kmidi hello` leave a small one: "
    "--base out/hello/model"
}
# What a run takes over from the base; the rest is the profile's.
_BASE_SECTIONS = ("model", "data", "sampling", "loss")
# what can be given in steps, and in epochs as the profile does
_IN_EPOCHS = {
    "training.save_every": "training.save_epochs",
    "training.eval_every": "training.eval_epochs",
    "optimizer.warmup_steps": "optimizer.warmup_epochs",
}


@dataclass(frozen=True)
class FinetunePlan:
    """What is to be learnt, from what, into which folder.

    Attributes:
        config: the run; `data.path` is where the prepared music is.
        out: folder of the run.
        resume: whether it goes on.
        source: the person's music; None: it is prepared already.
        original: prepared music of the base, to see what is forgotten; None: what comes with kmidi.
        trackers: that are reported to, as of `check_trackers`.
    """

    config: RunConfig
    out: Path
    resume: bool
    source: Path | None
    original: Path | None
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Losses:
    """Validation losses of one model on the person's music and on that of the base."""

    own: float
    original: float | None


@dataclass(frozen=True)
class Memory:
    """What fine-tuning gained and forgot.

    Attributes:
        unit: of the losses.
        before, after: of the base, and of the best weights.
        original_data: what the base is judged on.
    """

    unit: str
    before: Losses
    after: Losses
    original_data: str

    @property
    def text(self) -> str:
        """One line for people."""
        own = f"own music {self.before.own:.3f} -> {self.after.own:.3f} {self.unit}"
        if self.before.original is None or self.after.original is None:
            return f"{own}; what the base knew was not measured: name its data with --original"
        kept = f"{self.before.original:.3f} -> {self.after.original:.3f}"
        return f"{own}; {self.original_data} {kept}"


def base_of(given: Path | None, model: str) -> Path:
    """Return the checkpoint that is fine-tuned: the one that is named, or else the usual one.

    Args:
        given: what `--base` says; None: nothing.
        model: `midi_generator` or `spectocloud`.
    """
    return given or usual_checkpoint(model)


def plan_finetuning(
    model: str,
    data: Path | None,
    base: Path,
    name: str | None,
    out: Path | None,
    original: Path | None,
    resume: bool,
    config_files: Sequence[Path],
    overrides: Sequence[str],
    is_ours: Callable[[Path], bool] = lambda out: False,
) -> FinetunePlan:
    """Settle what is to be done.

    Args:
        model: `midi_generator` or `spectocloud`.
        data: a person's music, or prepared; may be left out on a resume, and is refused there if
            the run was made from other music.
        base: checkpoint that is fine-tuned; not looked at on a resume.
        name: of the result; None: that of the data.
        out: folder of the run; None: among the adapters of the base, or beside it.
        original: prepared music of the base; None: where the base says it was.
        resume: go on with the run in the folder.
        config_files, overrides: as of `load_config`.
        is_ours: whether to go on with what is in a folder, if anything is, without being told to.

    Raises:
        KmidiError: for settings that cannot be, a base that cannot be opened, nothing to resume,
            or a folder that holds a run already.
    """
    overrides = list(overrides)
    if resume:
        out = out or _begun(base, name or (_called(data) if data else ""))
        return _resumed(model, data, out, original, config_files, overrides)
    if data is None:
        raise KmidiError("nothing to learn from: name a folder of music with --data.")
    if not data.exists():
        raise KmidiError(f"no such folder: {data}.")
    weights = open_weights(base, RUN_CONFIGS[model], _BASE_HINTS.get(model, " with --base"))
    prepared = is_prepared(data)
    with tempfile.TemporaryDirectory() as folder:
        of_base = Path(folder) / "base.yaml"
        save_config(_only(weights.config, _BASE_SECTIONS), of_base)
        overrides.append(f"adapter.base={json.dumps(str(base))}")
        config = _usual(model, [of_base], config_files, overrides)
    if config.adapter.method == "none":
        raise KmidiError("adapter.method is none; fine-tuning needs lora, dora or full.")
    out = out or _folder(base, name or _called(data), config.adapter.adapts)
    if any(
        (out / file).exists() for file in (checkpoint.LAST, checkpoint.BEST, checkpoint.ADAPTER)
    ):
        if is_ours(out):
            return _resumed(model, data, out, original, config_files, overrides)
        raise KmidiError(
            f"{out} already holds a run; use --resume to go on or give another --name."
        )
    path = data if prepared else out / _OWN_DATA
    data_section = replace(config.data, path=str(path))  # type: ignore[call-arg]
    config = replace(config, data=data_section)
    return FinetunePlan(config, out, False, None if prepared else data, original)


def usual_config(model: str) -> RunConfig:
    """Return the settings of fine-tuning where a person gives none."""
    return _usual(model, [], [], ["adapter.base=BASE"])


def _usual(
    model: str, below: Sequence[Path], above: Sequence[Path], overrides: Sequence[str]
) -> RunConfig:
    # who counts in steps does not want the usual epochs
    given = {text.partition("=")[0] for text in overrides}
    steps = [f"{epochs}=0" for one, epochs in _IN_EPOCHS.items() if one in given]
    with as_file(files("kmidi_mlx") / "assets") as assets:
        return load_config(model, [*below, assets / "lora.yaml", *above], [*steps, *overrides])


def _resumed(
    model: str,
    data: Path | None,
    out: Path,
    original: Path | None,
    config_files: Sequence[Path],
    overrides: Sequence[str],
) -> FinetunePlan:
    found = [out / name for name in (checkpoint.ADAPTER_CONFIG, checkpoint.CONFIG)]
    saved = next((path for path in found if path.exists()), None)
    if saved is None:
        raise KmidiError(f"{out} holds no run to resume; leave out --resume to start one.")
    config = load_config(model, [saved, *config_files], overrides)
    path = Path(config.data.path)  # type: ignore[attr-defined]
    # prepared once: sides drawn anew could hold out what was learnt from
    if not is_prepared(path):
        source = None if data is not None and is_prepared(data) else data
        return FinetunePlan(config, out, True, source, original)
    if data is not None and not is_made_of(model, path, data):
        raise KmidiError(
            f"the run in {out} goes on with the music it was begun with, which is not that in "
            f"{data}; leave out --data, or leave out --resume and give another --name."
        )
    return FinetunePlan(config, out, True, None, original)


def _called(data: Path) -> str:
    return data.name if data.is_dir() else data.stem


def _folder(base: Path, name: str, adapts: bool) -> Path:
    if not name or _NO_NAME.match(name):
        raise KmidiError(f"the result cannot be called {name[:80]!r}: {_NAME_RULE}; give --name.")
    folder = base if in_force(base).is_dir() else base.parent
    return (
        folder / checkpoint.ADAPTERS / name if adapts else folder.parent / f"{folder.name}-{name}"
    )


def _begun(base: Path, name: str) -> Path:
    """Return the folder of a run of this name, which trains adapters or every weight."""
    folders = [_folder(base, name, adapts) for adapts in (True, False)]
    return next((folder for folder in folders if folder.exists()), folders[0])


def _only(config: RunConfig, sections: Sequence[str]) -> RunConfig:
    kept = {name: getattr(config, name) for name in sections if hasattr(config, name)}
    return type(config)(**kept)


def original_music(plan: FinetunePlan) -> tuple[Path | None, str]:
    """Return prepared music of the base to judge what is remembered, and what to call it.

    Where the base's own is not there, a generator is judged on the pieces that come with kmidi.
    """
    if plan.original is not None:
        return plan.original, f"music of the base in {plan.original}"
    base = open_weights(Path(plan.config.adapter.base), type(plan.config))
    path = Path(base.config.data.path)  # type: ignore[attr-defined]
    if (path / "dataset.json").exists():
        return path, f"music of the base in {path}"
    if not isinstance(plan.config, MidiGeneratorConfig):
        return None, ""
    with as_file(files("kmidi_mlx") / "assets" / "pop909") as folder:
        prepare_midi([folder / "manifest.jsonl"], plan.out / _SHIPPED_DATA, licence="MIT")
    return plan.out / _SHIPPED_DATA, "pieces that come with kmidi"


def about_base(plan: FinetunePlan) -> dict[str, str]:
    """Return what results say of the weights that they were trained over: `name` and `digest`."""
    path = Path(plan.config.adapter.base)
    return {"name": path.name, "digest": open_weights(path, type(plan.config)).digest}


def settle_base(plan: FinetunePlan) -> str | None:
    """Give the weights of the package a folder of their own, where they are what is fine-tuned.

    What is learnt belongs to them and lies beside them, whatever comes with later versions.

    Args:
        plan: of a run.

    Returns:
        A line for people; None: there was nothing to do.

    Raises:
        KmidiError: when the system refuses.
    """
    base = Path(plan.config.adapter.base)
    shipped = in_force(base)
    if shipped == base:
        return None
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KmidiError(f"cannot make the folder {base}: {error.strerror}.") from error
    write_bytes_atomically(base / checkpoint.BEST, (shipped / checkpoint.BEST).read_bytes())
    return f"{base}: the weights that come with kmidi; what is learnt will lie beside them"


def losses_of(task: Any, original: Path | None) -> Losses:
    """Judge the model of a task as it stands.

    Args:
        task: a MIDI or cloud task of any framework.
        original: prepared music of the base; None: there is none.
    """
    task.model.eval()
    own = task.evaluate()["val_loss"]
    kept = task.evaluate(task.batches_of(original))["val_loss"] if original else None
    task.model.train()
    return Losses(own, kept)


def save_memory(memory: Memory, folder: Path) -> None:
    """Write what was gained and forgotten beside the weights."""
    text = json.dumps(asdict(memory), indent=2)
    write_bytes_atomically(folder / checkpoint.GAINED, f"{text}\n".encode())
