"""`python -m kmidi_mlx.train`: train a model on this machine, or on several Macs.

Several processes: `mlx.launch -n N -- python -m kmidi_mlx.train …`; N of them that accumulate over
A micro-batches do what one does that accumulates over N x A.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.command import (
    INTERRUPTED,
    WRONG_USE,
    CommandParser,
    add_config_arguments,
    interruptible,
    run,
)
from kmidi_mlx.config import (
    RUN_CONFIGS,
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
)
from kmidi_mlx.config_file import describe_options, load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import SaidByLeaderError
from kmidi_mlx.runs.trackers import add_tracker_arguments, check_trackers
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.shipped import usual_checkpoint

REASONS = {
    "finished": "finished",
    "stopped_early": "stopped early: the validation loss no longer falls",
    "time_limit": "stopped at the time limit training.max_minutes",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Plan:
    """What is to be trained: the run, its folder, whether it goes on with it, who follows it."""

    config: RunConfig
    out: Path
    resume: bool
    trackers: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Parse the flags, train, print where the result is."""
    parser = train_parser("kmidi train", "Train a model on this machine.")
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(RUN_CONFIGS[args.model]))
        return 0
    try:
        return _train(args, parser.prog)
    except SaidByLeaderError:
        return WRONG_USE


def _train(args: argparse.Namespace, command: str) -> int:
    # imported late, so that --help and wrong flags answer at once
    from kmidi_mlx.training.distributed import joined

    with ExitStack() as held:
        processes = held.enter_context(joined())
        interruption = held.enter_context(interruptible())
        plan = processes.told(lambda: plan_run(args))
        from kmidi_mlx.training.run import train_model

        if processes.leads:
            held.enter_context(checkpoint.exclusive(plan.out))
        outcome = train_model(
            plan.config,
            plan.out,
            plan.resume,
            interruption,
            lambda line: print(line, file=sys.stderr),
            plan.trackers,
            processes,
        )
    if processes.leads:
        return report(outcome, plan, args.json, command)
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def train_parser(prog: str, description: str) -> CommandParser:
    """Make a parser with the flags that training has in every framework."""
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument(
        "--model",
        choices=sorted(RUN_CONFIGS),
        default=MidiGeneratorConfig.name,
        help="what to train (default: midi_generator)",
    )
    parser.add_argument("--data", metavar="DIR", help="prepared music (sets data.path)")
    add_recording_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="checkpoint folder (default: checkpoints/MODEL)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_tracker_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--help-config", action="store_true", help="list all options and exit")
    add_config_arguments(parser)
    return parser


def plan_run(args: argparse.Namespace, is_ours: Callable[[Path], bool] = lambda out: False) -> Plan:
    """Return what the flags of `train_parser` ask for.

    Args:
        args: parsed.
        is_ours: whether to go on with what is in a folder, if anything is, without being told to.

    Raises:
        KmidiError: for settings that cannot be, nothing to resume, a folder that is in use, or a
            tracker that is not installed.
    """
    out = args.out or usual_checkpoint(args.model)
    files, overrides = list(args.config_files), list(args.overrides)
    overrides += recording_overrides(args)
    if args.data is not None:
        overrides.append(f"data.path={json.dumps(args.data)}")
    started = (out / checkpoint.LAST).exists() or (out / checkpoint.BEST).exists()
    resume = args.resume or (is_ours(out) and (out / checkpoint.CONFIG).exists())
    if resume:
        if started and not (out / checkpoint.CONFIG).exists():
            raise KmidiError(
                f"{out} holds a run without its {checkpoint.CONFIG}; copy that file too from where "
                "the run came from."
            )
        if not (out / checkpoint.CONFIG).exists():
            raise KmidiError(f"{out} holds no run to resume; leave out --resume to start one.")
        files.insert(0, out / checkpoint.CONFIG)
    config = load_config(args.model, files, overrides)
    if started and not resume:
        raise KmidiError(f"{out} already holds a run; use --resume to go on or give another --out.")
    return Plan(config, out, resume, check_trackers(args.trackers))


def add_recording_arguments(parser: CommandParser) -> None:
    """Add the flags that only the emotion recogniser has."""
    group = parser.add_argument_group("emotion_recognizer")
    group.add_argument(
        "--audio-manifest", metavar="FILE", help="labelled recordings (sets data.manifest)"
    )
    group.add_argument(
        "--sample-rate", type=int, metavar="HZ", help="of what it hears (sets data.sample_rate)"
    )
    group.add_argument("--n-mels", type=int, metavar="N", help="mel bands (sets model.n_mels)")
    group.add_argument(
        "--use-augmentation",
        action="store_true",
        help="stretch, shift, tilt and mask recordings (sets data.augment)",
    )


def recording_overrides(args: argparse.Namespace) -> list[str]:
    """Return the flags of the recogniser as settings.

    Raises:
        KmidiError: when another model is to be trained with them, or the recogniser with `--data`.
    """
    given = {
        "--audio-manifest": ("data.manifest", args.audio_manifest),
        "--sample-rate": ("data.sample_rate", args.sample_rate),
        "--n-mels": ("model.n_mels", args.n_mels),
        "--use-augmentation": ("data.augment", True if args.use_augmentation else None),
    }
    used = {flag: pair for flag, pair in given.items() if pair[1] is not None}
    if args.model != EmotionRecognizerConfig.name:
        if used:
            raise KmidiError(
                f"{next(iter(used))} is for --model {EmotionRecognizerConfig.name}, not for "
                f"{args.model}."
            )
    elif args.data is not None:
        raise KmidiError(
            f"{args.model} learns from a manifest of recordings: give --audio-manifest FILE "
            "instead of --data."
        )
    return [f"{option}={json.dumps(value)}" for option, value in used.values()]


def report(outcome: Outcome, plan: Plan, as_json: bool, command: str) -> int:
    """Print how a run ended and return the exit status.

    Args:
        outcome: of the run.
        plan: the run.
        as_json: print JSON instead of text.
        command: the words that started it, for the advice how to go on.
    """
    done = outcome.progression
    result = {
        "reason": outcome.reason,
        "step": done.step,
        outcome.unit: int(done.tokens),
        "seconds": round(done.seconds, 1),
        "val_loss": done.best_loss if done.best_step >= 0 else None,
        "best_step": done.best_step,
        "skipped_steps": outcome.skipped_steps,
        "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 3),
        "synthetic": outcome.synthetic,
        "checkpoint": str(plan.out / checkpoint.BEST),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _print_result(result, outcome.unit, outcome.loss_unit)
        if outcome.reason in ("interrupted", "time_limit"):
            more = " --set training.max_minutes=0" if outcome.reason == "time_limit" else ""
            more += "".join(f" --tracker {name}" for name in plan.trackers)
            flags = f"--model {plan.config.name} --out {plan.out} --resume{more}"
            print(f"go on with: {command} {flags}")
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def _print_result(result: dict[str, Any], unit: str, loss_unit: str) -> None:
    print(
        f"{REASONS[result['reason']]} at step {result['step']} after {result['seconds']} s "
        f"and {result[unit]:,} {unit}; {result['skipped_steps']} steps skipped, "
        f"peak memory {result['peak_memory_gb']} GB"
    )
    if result["val_loss"] is not None:
        print(f"best: {result['val_loss']:.4f} {loss_unit} at step {result['best_step']}")
        print(f"weights: {result['checkpoint']}")
    if result["synthetic"]:
        print("note: trained on synthetic practice music, not on real music")


if __name__ == "__main__":
    sys.exit(run(main))
