"""`python -m kmidi_mlx.workflow`: prepare, train, evaluate, fine-tune, quantise, export, report."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, CommandParser, add_config_arguments, interruptible, run
from kmidi_mlx.config_file import describe_options, load_sections
from kmidi_mlx.console import in_words
from kmidi_mlx.errors import KmidiError, nearest
from kmidi_mlx.workflow.commands import moves_of, resumed, shown
from kmidi_mlx.workflow.config import WorkflowConfig
from kmidi_mlx.workflow.journal import Journal, fingerprint
from kmidi_mlx.workflow.report import REPORT, write_report
from kmidi_mlx.workflow.runner import goes_on, run_step
from kmidi_mlx.workflow.steps import Step, steps_of

_LOGS = "logs"
CHECK_FAILED = 1


def main(argv: list[str]) -> int:
    """Do what is not done yet, and report."""
    parser = CommandParser(
        prog="kmidi workflow",
        description="The whole life cycle in one go: prepare, train both models, evaluate, "
        "fine-tune, quantise, export, measure, report. What was done from the same inputs is not "
        "done again; what was cut off is gone on with.",
    )
    add_config_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of all results (sets workflow.out)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="STEP", help="do this step and no other"
    )
    parser.add_argument("--from", dest="first", metavar="STEP", help="do this step and those after")
    parser.add_argument("--force", action="store_true", help="do also what is done already")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--help-config", action="store_true", help="list all options and exit")
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(WorkflowConfig))
        return 0
    if args.out is not None:
        args.overrides.append(f"workflow.out={json.dumps(args.out)}")
    config = load_sections(WorkflowConfig, args.config_files, args.overrides)
    steps = steps_of(config)
    chosen = _chosen(steps, args.only, args.first)
    out = Path(config.workflow.out)
    if args.dry_run:
        _show(steps, chosen, Journal(out), args.force)
        return 0
    with checkpoint.exclusive(out):
        journal = Journal(out)
        repeat = "kmidi workflow " + " ".join(
            [f"--config {path}" for path in args.config_files]
            + [f"--set {shlex.quote(text)}" for text in args.overrides]
        )
        status = _do(steps, chosen, journal, out, args.force, repeat.rstrip())
        write_report(config, steps, journal, out)
    print(f"report: {out / REPORT}")
    return status


def _chosen(steps: Sequence[Step], only: Sequence[str], first: str | None) -> list[str]:
    """Names of the steps that a person wants looked at."""
    names = [step.name for step in steps]
    for name in [*only, *([first] if first else [])]:
        if name not in names:
            raise KmidiError(f"no step is called {name[:60]!r}{nearest(name, names, 'there are')}")
    if only:
        return [name for name in names if name in only]
    return names[names.index(first) :] if first else names


def _show(steps: Sequence[Step], chosen: Sequence[str], journal: Journal, force: bool) -> None:
    """Say what would be done; what hangs on a step that is still to be done will be too."""
    pending: set[str] = set()
    moved: set[Path] = set()
    for step in steps:
        if step.name not in chosen:
            continue
        if step.left_out:
            print(f"{step.name}: left out: {step.left_out}")
            continue
        waits = [need for need in step.needs if need in pending]
        wanted = fingerprint(step.commands, step.inputs())
        done = not waits and not force and journal.is_done(step.name, wanted)
        print(f"{step.name}: {'done already' if done else 'to do'}")
        if done:
            continue
        pending.add(step.name)
        continues = not waits and goes_on(step, wanted, journal)
        for number, command in enumerate(step.commands):
            folder = step.folders.get(number)
            if folder is not None and continues and (folder / checkpoint.LAST).exists():
                command = resumed(command, folder)
            elif folder is not None and moved.isdisjoint(folder.parents):
                moved.add(folder)
                for line in moves_of(folder):
                    print(f"    {line}")
            print(f"    {shown(command)}")


def _do(
    steps: Sequence[Step],
    chosen: Sequence[str],
    journal: Journal,
    out: Path,
    force: bool,
    repeat: str,
) -> int:
    with interruptible() as interruption:
        for step in steps:
            if step.name not in chosen:
                continue
            if step.left_out:
                _say(f"{step.name}: left out: {step.left_out}")
                continue
            missing = [need for need in step.needs if not journal[need].done]
            if missing:
                raise KmidiError(
                    f"{step.name} needs {missing[0]}, which is not done: {repeat} --only "
                    f"{missing[0]}."
                )
            wanted = fingerprint(step.commands, step.inputs())
            if journal.is_done(step.name, wanted) and not force:
                _say(f"{step.name}: done already")
                continue
            _say(f"{step.name}: {step.title}")
            began = time.monotonic()
            done = run_step(step, wanted, journal, out / _LOGS, interruption)
            if done.status:
                _say(_how_it_ended(step, done.status, shown(done.command), repeat))
                return INTERRUPTED if done.status == INTERRUPTED else CHECK_FAILED
            took = in_words(time.monotonic() - began)
            _say(f"{step.name}: done in {took}, at most {journal[step.name].peak_gb:.2f} GB")
    return 0


def _how_it_ended(step: Step, status: int, command: str, repeat: str) -> str:
    if status == INTERRUPTED:
        return f"interrupted in {step.name}; go on with: {repeat}"
    what = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
    return (
        f"{step.name} {what}; what it said is above. Repeat it with:\n    {command}\n"
        f"then go on with:\n    {repeat}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
