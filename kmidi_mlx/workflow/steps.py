"""The steps of the workflow: which commands they are, what they look at, what they leave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from kmidi_mlx import checkpoint
from kmidi_mlx.config import RunConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.data.sources import MIDI_FILES, SOUNDING_FILES, Accepted, list_sources
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.workflow.config import TrainStepConfig, WorkflowConfig
from kmidi_mlx.workflow.journal import digest_of_files
from kmidi_mlx.workflow.memory import fitting

__all__ = ["Step", "steps_of"]

GENERATOR, CLOUD = "midi_generator", "spectocloud"
# What a worker of `prepare` takes at the most.
_WORKER_GB = 1.0
_EXPORTED = {"onnx": "best.onnx", "coreml": "best.mlpackage"}
# Packages that a target needs beside torch.
_NEEDED = {"onnx": "onnxscript", "coreml": "coremltools"}


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: for `--only` and `--from`.
        title: for people.
        commands: modules of `python -m` and their arguments, run one after the other.
        inputs: called when the step's turn has come; tells its inputs from others.
        outputs: files that it leaves.
        folders: of runs that `--resume` can go on with, by the number of their command; what other
            inputs left there is set aside.
        needs: steps that have to be done before.
        left_out: why it is not done at all; empty: it is.
    """

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...] = ()
    inputs: Callable[[], list[str]] = list
    outputs: tuple[Path, ...] = ()
    folders: dict[int, Path] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    left_out: str = ""


def steps_of(config: WorkflowConfig) -> list[Step]:
    """Return all steps in order.

    Raises:
        KmidiError: when no music is named, or a run's settings cannot be or fit no memory.
    """
    if not config.prepare.midi:
        raise KmidiError(
            "prepare.midi names no music; give folders, MIDI files or manifests, as in "
            "--set 'prepare.midi=[MY_FOLDER]'."
        )
    return [
        *_prepare(config),
        _train(config, GENERATOR),
        _train(config, CLOUD),
        *_evaluate(config),
        *_finetune(config),
        _pieces(config),
        *_quantize(config),
        *_export(config),
        _bench(config),
    ]


def _out(config: WorkflowConfig) -> Path:
    return Path(config.workflow.out)


def _contents(*paths: Path) -> Callable[[], list[str]]:
    return lambda: [digest_of_files(paths)]


def _music(sources: Sequence[str], accepted: Accepted) -> Callable[[], list[str]]:
    """Path, size, time and labels of every file that sources stand for."""

    def look() -> list[str]:
        found = list_sources([Path(source) for source in sources], accepted=accepted)
        told = []
        for each in found:
            status = Path(each.path).stat() if Path(each.path).exists() else None
            size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
            told.append(json.dumps([each.path, size, time, each.split, each.conditions]))
        return told

    return look


def _prepare(config: WorkflowConfig) -> list[Step]:
    out, wanted = _out(config), config.prepare
    workers = max(1, min(os.cpu_count() or 1, int(config.workflow.memory_gb / _WORKER_GB)))
    flags = ["--workers", str(workers), "--json"]
    if wanted.licence:
        flags += ["--licence", wanted.licence]
    clouds = wanted.spectocloud or wanted.midi
    midi = ("kmidi_mlx.prepare", "midi", *wanted.midi, "--out", str(out / "data/midi"), *flags)
    cloud = (
        *("kmidi_mlx.prepare", "spectocloud", *clouds, "--out", str(out / "data/spectocloud")),
        *("--samples", str(wanted.samples), *flags),
    )
    return [
        Step(
            "prepare-midi",
            "Music for the generator",
            (midi,),
            _music(wanted.midi, MIDI_FILES),
            (out / "data/midi/dataset.json", out / "data/midi/index.npz"),
        ),
        Step(
            "prepare-spectocloud",
            "Clouds to learn from",
            (cloud,),
            _music(clouds, SOUNDING_FILES),
            (out / "data/spectocloud/dataset.json", out / "data/spectocloud/index.npz"),
        ),
    ]


def _train(config: WorkflowConfig, model: str) -> Step:
    out = _out(config)
    wanted: TrainStepConfig = getattr(config, model)
    data = out / "data" / ("midi" if model == GENERATOR else model)
    folder = out / model
    settings = [*wanted.set, f"data.path={json.dumps(str(data))}"]
    files = [Path(path) for path in wanted.config]
    run = load_config(model, files, settings)
    settings += fitting(run, _parameters(run), config.workflow.memory_gb)
    command = [
        *("kmidi_mlx.train", "--model", model, "--out", str(folder), "--json"),
        *(word for path in wanted.config for word in ("--config", path)),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    needed = f"prepare-{'midi' if model == GENERATOR else model}"
    return Step(
        f"train-{model}",
        f"Training {model}",
        (tuple(command),),
        _contents(data / "dataset.json", data / "index.npz", *files),
        (folder / checkpoint.BEST,),
        {0: folder},
        (needed,),
    )


def _parameters(run: RunConfig) -> int:
    """Count the weights of a run's model; none is computed."""
    from mlx.utils import tree_flatten

    from kmidi_mlx.convert import find_network

    network = find_network("kmidi_mlx", run)(run.model)
    return sum(array.size for _, array in tree_flatten(network.parameters()))


def _evaluate(config: WorkflowConfig) -> list[Step]:
    out, wanted = _out(config), config.evaluate
    steps = []
    for model, data in ((GENERATOR, "midi"), (CLOUD, CLOUD)):
        folder = out / "data" / data
        command = [
            *("kmidi_mlx.evaluate", "--model", model, "--checkpoint", str(out / model)),
            *("--data", str(folder), "--json"),
        ]
        if model == GENERATOR:
            command.append("--baselines")
            command += ["--limit", str(wanted.limit)] if wanted.limit else []
            if wanted.generate:
                seconds = f"{wanted.seconds:g}"
                command += ["--generate", str(wanted.generate), "--seconds", seconds]
        steps.append(
            Step(
                f"evaluate-{model}",
                f"How good {model} is",
                (tuple(command),),
                _contents(out / model / checkpoint.BEST, folder / "index.npz"),
                needs=(f"train-{model}",),
            )
        )
    return steps


def _finetune(config: WorkflowConfig) -> list[Step]:
    out, wanted = _out(config), config.finetune
    practice = out / "data" / "practice"
    steps = []
    for model, given, accepted in (
        (GENERATOR, wanted.midi, MIDI_FILES),
        (CLOUD, wanted.spectocloud, SOUNDING_FILES),
    ):
        name, title = f"finetune-{model}", f"Personal style of {model}"
        practises = model == GENERATOR and wanted.practice
        if not given and not practises:
            steps.append(Step(name, title, left_out=f"no music of your own: set finetune.{model}"))
            continue
        folder = out / model / checkpoint.ADAPTERS / "own"
        commands: list[tuple[str, ...]] = []
        if practises:
            pieces = ("--synthetic", str(wanted.practice), "--val-share", "0.2")
            commands.append(
                ("kmidi_mlx.prepare", "midi", *pieces, "--out", str(practice), "--json")
            )
        base = out / model
        data = out / "data" / ("midi" if model == GENERATOR else model)
        settings = [*wanted.set, f"training.memory_gb={config.workflow.memory_gb:g}"]
        commands.append(
            (
                *("kmidi_mlx.finetune", "--model", model, "--base", str(base)),
                *("--data", given or str(practice), "--name", "own", "--original", str(data)),
                *("--fuse", "--json"),
                *(word for setting in settings for word in ("--set", setting)),
            )
        )
        look = _contents(base / checkpoint.BEST, data / "index.npz")
        own = _music([given], accepted) if given else list
        steps.append(
            Step(
                name,
                title,
                tuple(commands),
                lambda look=look, own=own: [*look(), *own()],  # type: ignore[misc]
                (folder / checkpoint.ADAPTER, folder / "fused" / checkpoint.BEST),
                {len(commands) - 1: folder},
                (f"train-{model}",),
            )
        )
    return steps


def _pieces(config: WorkflowConfig) -> Step:
    """Pieces by the model, and by the model in a person's style, with their pictures."""
    out, seconds = _out(config), f"{config.evaluate.seconds:g}"
    base = out / GENERATOR
    styles: list[tuple[str, tuple[str, ...]]] = [("", ())]
    if config.finetune.midi or config.finetune.practice:
        styles.append(("-own", ("--adapter", "own")))
    commands: list[tuple[str, ...]] = []
    outputs = []
    for feeling in ("happy", "sad"):
        for ending, flags in styles:
            piece = out / "pieces" / f"{feeling}{ending}.mid"
            commands.append(
                (
                    *("kmidi_mlx.generate", "--checkpoint", str(base), "--emotion", feeling),
                    *("--seconds", seconds, "--out", str(piece), "--json", *flags),
                )
            )
            outputs.append(piece)
            if find_spec("PIL"):
                picture = piece.with_suffix(".png")
                commands.append(
                    (
                        *("kmidi_mlx.picture", str(piece), "--emotion", feeling, "--compare"),
                        *("--checkpoint", str(out / CLOUD), "--out", str(picture)),
                    )
                )
                outputs.append(picture)
    adapter = base / checkpoint.ADAPTERS / "own" / checkpoint.ADAPTER
    return Step(
        "pieces",
        "Music and pictures",
        tuple(commands),
        _contents(base / checkpoint.BEST, adapter, out / CLOUD / checkpoint.BEST),
        tuple(outputs),
        needs=(f"train-{GENERATOR}", f"train-{CLOUD}"),
    )


def _quantize(config: WorkflowConfig) -> list[Step]:
    out, wanted = _out(config), config.quantize
    steps = []
    for model, data in ((GENERATOR, "midi"), (CLOUD, CLOUD)):
        name, title = f"quantize-{model}", f"{model} in {wanted.bits} bits"
        if not wanted.bits:
            steps.append(Step(name, title, left_out="quantize.bits is 0"))
            continue
        result = out / f"{model}-{wanted.bits}bit" / checkpoint.BEST
        command = [
            *("kmidi_mlx.convert", str(out / model), str(result)),
            *("--quantize", str(wanted.bits), "--data", str(out / "data" / data)),
            *("--force", "--json"),
        ]
        if wanted.max_loss:
            command += ["--max-loss", f"{wanted.max_loss:g}"]
        look = _contents(out / model / checkpoint.BEST)
        steps.append(
            Step(name, title, (tuple(command),), look, (result,), needs=(f"train-{model}",))
        )
    return steps


def _export(config: WorkflowConfig) -> list[Step]:
    out = _out(config)
    steps = []
    for target in config.export.targets:
        missing = [name for name in ("torch", _NEEDED[target]) if not find_spec(name)]
        if missing:
            reason = f"{missing[0]} is not installed: pip install 'kmidi-mlx[export]'"
            steps.append(Step(f"export-{target}", f"Export to {target}", left_out=reason))
            continue
        results = [out / "export" / f"{model}-{_EXPORTED[target]}" for model in (GENERATOR, CLOUD)]
        commands = tuple(
            (
                *("kmidi_torch.export", target, "--model", model),
                *("--checkpoint", str(out / model), "--out", str(result), "--json"),
            )
            for model, result in zip((GENERATOR, CLOUD), results, strict=True)
        )
        weights = [out / model / checkpoint.BEST for model in (GENERATOR, CLOUD)]
        steps.append(
            Step(
                f"export-{target}",
                f"Export to {target}",
                commands,
                _contents(*weights),
                tuple(results),
                needs=(f"train-{GENERATOR}", f"train-{CLOUD}"),
            )
        )
    return steps


def _bench(config: WorkflowConfig) -> Step:
    out, title = _out(config), "Speed of the live application"
    if not config.bench.seconds:
        return Step("bench", title, left_out="bench.seconds is 0")
    if not Path("bench", "live.py").exists():
        return Step("bench", title, left_out="benches are run from a copy of the repository")
    result = out / "bench-live.jsonl"
    command = (
        *("bench.live", "--seconds", str(config.bench.seconds), "--paced"),
        *("--generator", str(out / GENERATOR), "--spectocloud", str(out / CLOUD)),
        *("--set", f"loop.memory_gb={config.workflow.memory_gb:g}", "--json", str(result)),
    )
    weights = [out / model / checkpoint.BEST for model in (GENERATOR, CLOUD)]
    return Step(
        "bench",
        title,
        (command,),
        _contents(*weights),
        (result,),
        needs=(f"train-{GENERATOR}", f"train-{CLOUD}"),
    )
