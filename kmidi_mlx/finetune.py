"""`python -m kmidi_mlx.finetune`: teach a trained model a person's own music."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote as quoted

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, CommandParser, add_config_arguments, interruptible, run
from kmidi_mlx.config import RUN_CONFIGS, MidiGeneratorConfig, SpectocloudConfig
from kmidi_mlx.config_file import describe_options
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.prepare_kinds.options import shown_work
from kmidi_mlx.runs.finetuning import (
    FinetunePlan,
    Memory,
    base_of,
    plan_finetuning,
    save_memory,
    settle_base,
    usual_config,
)
from kmidi_mlx.runs.trackers import add_tracker_arguments, check_trackers
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.train import REASONS

MODELS = (MidiGeneratorConfig.name, SpectocloudConfig.name)
FUSED = "fused"


def main(argv: list[str]) -> int:
    """Parse the flags, prepare, train, say what was learnt and how to use it."""
    parser = finetune_parser("kmidi finetune", "Teach a trained model your own music.")
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(RUN_CONFIGS[args.model], usual_config(args.model)))
        return 0
    plan = plan_from(args)
    with checkpoint.exclusive(plan.out):
        if not prepare(plan):
            return INTERRUPTED
        # imported late, so that --help and wrong flags answer at once
        from kmidi_mlx.training.finetuning import finetune_model, fuse

        with interruptible() as interruption:
            outcome, memory = finetune_model(plan, interruption, say)
        if memory is not None:
            save_memory(memory, plan.out)
        fused = fuse(plan, plan.out / FUSED) if args.fuse and memory is not None else None
    return report(plan, outcome, memory, fused, args.json, parser.prog)


def finetune_parser(prog: str, description: str) -> CommandParser:
    """Make a parser with the flags that fine-tuning has in every framework."""
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="what to fine-tune")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="your music: a folder of MIDI files (for spectocloud also sound), or prepared data",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="checkpoint to begin with (default: checkpoints/MODEL, or else that of kmidi)",
    )
    parser.add_argument("--name", help="of the result and its folder (default: that of --data)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: BASE/adapters/NAME)"
    )
    parser.add_argument(
        "--original",
        type=Path,
        metavar="DIR",
        help="prepared data of the base, to see what is forgotten (default: where it was)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--fuse", action="store_true", help="also write OUT/fused, a checkpoint of its own"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--help-config", action="store_true", help="list all options and exit")
    add_tracker_arguments(parser)
    add_config_arguments(parser)
    return parser


def plan_from(
    args: argparse.Namespace, is_ours: Callable[[Path], bool] = lambda out: False
) -> FinetunePlan:
    """Return what the flags of `finetune_parser` ask for.

    Args:
        args: parsed.
        is_ours: as of `plan_finetuning`, and errors too.
    """
    plan = plan_finetuning(
        args.model,
        args.data,
        base_of(args.base, args.model),
        args.name,
        args.out,
        args.original,
        args.resume,
        args.config_files,
        args.overrides,
        is_ours,
    )
    if args.fuse and not plan.config.adapter.adapts:
        raise KmidiError(
            "--fuse: full fine-tuning leaves a checkpoint of its own; there is nothing to fuse."
        )
    plan = replace(plan, trackers=check_trackers(args.trackers))
    # last, when nothing is wrong
    settled = settle_base(plan)
    if settled:
        say(settled)
    return plan


def say(line: str) -> None:
    """Tell a person what is going on, apart from results."""
    print(line, file=sys.stderr)


def prepare(plan: FinetunePlan) -> bool:
    """Prepare the music of a plan and say what is in it; False: stopped before the end."""
    # imported late: it reads sound too, with large libraries
    from kmidi_mlx.data.cloud_shards import CloudReader
    from kmidi_mlx.data.personal import describe_clouds, describe_music, prepare_own
    from kmidi_mlx.data.shards import ShardReader

    path = Path(plan.config.data.path)  # type: ignore[attr-defined]
    midi = isinstance(plan.config, MidiGeneratorConfig)
    if plan.source is not None:
        with shown_work("tokens" if midi else "samples") as work:
            done = prepare_own(
                plan.config.name,
                plan.source,
                path,
                seed=plan.config.training.seed,
                on_start=work.on_start,
                on_progress=work.on_progress,
                stop=work.stop,
            )
        if not done:
            say("interrupted; the same command goes on from here")
            return False
    say(describe_music(ShardReader(path)) if midi else describe_clouds(CloudReader(path)))
    return True


def report(
    plan: FinetunePlan,
    outcome: Outcome,
    memory: Memory | None,
    fused: Path | None,
    as_json: bool,
    command: str,
) -> int:
    """Print how fine-tuning ended and return the exit status."""
    done = outcome.progression
    weights = plan.out / checkpoint.names_of(plan.config.adapter.adapts).weights
    if as_json:
        result = {
            "reason": outcome.reason,
            "step": done.step,
            "seconds": round(done.seconds, 1),
            "best_step": done.best_step,
            "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 3),
            "weights": str(weights),
            "bytes": weights.stat().st_size if weights.exists() else 0,
            "fused": None if fused is None else str(fused),
            "memory": None if memory is None else asdict(memory),
            "synthetic": outcome.synthetic,
        }
        print(json.dumps(result))
    else:
        print(
            f"{REASONS[outcome.reason]} at step {done.step} after {done.seconds:.0f} s; best at "
            f"step {done.best_step}; peak memory {outcome.peak_memory_bytes / 1e9:.2f} GB"
        )
        if memory is not None:
            print(memory.text)
            print(f"weights: {weights} ({_megabytes(weights)} MB)")
        if fused is not None:
            print(f"fused: {fused}")
        print(_next(plan, outcome, command))
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def _megabytes(path: Path) -> str:
    size = path.stat().st_size / 1e6
    return f"{size:.1f}" if size >= 1 else f"{size:.2f}"


def _next(plan: FinetunePlan, outcome: Outcome, command: str) -> str:
    """Say what to do now."""
    if outcome.reason in ("interrupted", "time_limit"):
        limit = " --set training.max_minutes=0" if outcome.reason == "time_limit" else ""
        own = f"--model {plan.config.name} --out {quoted(str(plan.out))} --resume{limit}"
        return f"go on with: {command} {own}"
    if not isinstance(plan.config, MidiGeneratorConfig):
        base, out = quoted(plan.config.adapter.base), quoted(str(plan.out))
        return f"see it: kmidi live --spectocloud {base} --cloud-adapter {out}"
    generate = command.replace("finetune", "generate")
    if not plan.config.adapter.adapts:
        return f"hear it: {generate} --checkpoint {quoted(str(plan.out))} --out own.mid"
    base = plan.config.adapter.base
    inside = plan.out.parent == Path(base) / checkpoint.ADAPTERS
    name = plan.out.name if inside else str(plan.out)
    words = f"--checkpoint {quoted(base)} --adapter {quoted(f'{name}:1.0')} --out own.mid"
    return f"hear it: {generate} {words}"


if __name__ == "__main__":
    sys.exit(run(main))
