"""`python -m kmidi_torch.finetune`: `kmidi finetune` with PyTorch, on CUDA, MPS or a CPU.

Flags, runs and adapters are those of `kmidi finetune`; either framework goes on with a run of the
other. Several GPUs or machines share the work as in `kmidi_torch.train`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, WRONG_USE, interruptible, run
from kmidi_mlx.config import RUN_CONFIGS
from kmidi_mlx.config_file import describe_options
from kmidi_mlx.finetune import FUSED, finetune_parser, plan_from, prepare, report, say
from kmidi_mlx.runs.finetuning import save_memory, usual_config
from kmidi_mlx.runs.processes import SaidByLeaderError
from kmidi_torch.train import add_device_arguments, is_ours, leave, mark_as_ours

if TYPE_CHECKING:
    from kmidi_torch.training.device import DeviceOptions

COMMAND = "python -m kmidi_torch.finetune"


def main(argv: list[str]) -> int:
    """Parse the flags, prepare, train, say what was learnt and how to use it."""
    parser = finetune_parser(COMMAND, "Teach a trained model your own music, with PyTorch.")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(RUN_CONFIGS[args.model], usual_config(args.model)))
        return 0
    # imported late, so that --help and wrong flags answer at once
    from kmidi_torch.training.device import DeviceOptions

    options = DeviceOptions(args.device, args.compile, args.deterministic, args.tf32)
    try:
        return _finetune(args, options)
    except SaidByLeaderError:
        return WRONG_USE


def _finetune(args: argparse.Namespace, options: DeviceOptions) -> int:
    from kmidi_torch.training.device import choose_device
    from kmidi_torch.training.distributed import joined, local_rank

    device = choose_device(options.name, local_rank())
    with ExitStack() as held:
        processes = held.enter_context(joined(device))
        plan = processes.told(lambda: plan_from(args, is_ours))
        from kmidi_torch.training.finetuning import finetune_model, fuse

        if processes.leads:
            held.enter_context(checkpoint.exclusive(plan.out))
            mark_as_ours(plan.out)
        if not processes.told(lambda: prepare(plan)):
            return INTERRUPTED
        interruption = held.enter_context(interruptible())
        outcome, memory = finetune_model(plan, interruption, say, options, processes)
        if not processes.leads:
            return INTERRUPTED if outcome.reason == "interrupted" else 0
        if memory is not None:
            save_memory(memory, plan.out)
        fused = fuse(plan, plan.out / FUSED) if args.fuse and memory is not None else None
    return report(plan, outcome, memory, fused, args.json, COMMAND)


if __name__ == "__main__":
    leave(run(main))
