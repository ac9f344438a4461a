"""`python -m kmidi_torch.train`: train a model with PyTorch, on CUDA, MPS or a CPU.

Flags, settings and checkpoint folders are those of `kmidi train`; either framework goes on with a
run of the other. With several GPUs or machines: `torchrun --nproc-per-node N -m kmidi_torch.train`;
N processes that accumulate over A micro-batches do what one does that accumulates over N x A.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, WRONG_USE, interruptible, run
from kmidi_mlx.config import RUN_CONFIGS
from kmidi_mlx.config_file import describe_options
from kmidi_mlx.runs.processes import SaidByLeaderError
from kmidi_mlx.train import plan_run, report, train_parser

if TYPE_CHECKING:
    from kmidi_torch.training.device import DeviceOptions

COMMAND = "python -m kmidi_torch.train"


def main(argv: list[str]) -> int:
    """Parse the flags, train, print where the result is."""
    parser = train_parser(COMMAND, "Train a model with PyTorch.")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(RUN_CONFIGS[args.model]))
        return 0
    # imported late, so that --help and wrong flags answer at once
    from kmidi_torch.training.device import DeviceOptions

    options = DeviceOptions(args.device, args.compile, args.deterministic, args.tf32)
    try:
        return _train(args, options)
    except SaidByLeaderError:
        return WRONG_USE


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where and how PyTorch trains."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device", metavar="NAME", help="cuda, cuda:N, mps or cpu (default: the first there is)"
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the loss and its gradient (default: on CUDA)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run on the same machine, at some cost in speed",
    )
    group.add_argument(
        "--tf32", action="store_true", help="multiply fp32 matrices with 11 bits on CUDA: faster"
    )


def _train(args: argparse.Namespace, options: DeviceOptions) -> int:
    from kmidi_torch.training.device import choose_device
    from kmidi_torch.training.distributed import joined, local_rank

    device = choose_device(options.name, local_rank())
    with ExitStack() as held:
        interruption = held.enter_context(interruptible())
        processes = held.enter_context(joined(device))
        plan = processes.told(lambda: plan_run(args, is_ours))
        from kmidi_torch.training.run import train_model

        if processes.leads:
            held.enter_context(checkpoint.exclusive(plan.out))
            mark_as_ours(plan.out)
        outcome = train_model(
            plan.config,
            plan.out,
            plan.resume,
            interruption,
            lambda line: print(line, file=sys.stderr),
            options,
            processes,
            plan.trackers,
        )
    if processes.leads:
        return report(outcome, plan, args.json, COMMAND)
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def mark_as_ours(out: Path) -> None:
    """Write into a folder that is held which launch holds it, for `is_ours`."""
    from kmidi_torch.training.distributed import launch_name

    (out / checkpoint.LOCK).write_text(launch_name(), encoding="utf-8")


def is_ours(out: Path) -> bool:
    """Whether a folder holds what this launch had begun before `torchrun` started it anew."""
    from kmidi_torch.training.distributed import launch_name, was_restarted

    lock = out / checkpoint.LOCK
    return was_restarted() and lock.exists() and lock.read_text("utf-8") == launch_name()


def leave(status: int) -> NoReturn:
    """End the process; threads that PyTorch keeps between processes may abort an ordinary end."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(run(main))
