"""The commands of a step: as people paste them, and as one goes on with a run that was cut off."""

from __future__ import annotations

import shlex
from itertools import takewhile
from pathlib import Path

from kmidi_mlx import checkpoint

__all__ = ["Command", "another", "holds_run", "moves_of", "resumed", "set_aside", "shown"]

Command = tuple[str, ...]


def shown(command: Command) -> str:
    """Return a command as a person would type it, with every setting once."""
    words = [word for at, word in enumerate(command) if not _is_for_programs(command, at)]
    kept: list[str] = []
    seen: set[str] = set()
    # from the end, because the last of two settings is the one that counts
    while words:
        word = words.pop()
        if not words or words[-1] != "--set":
            kept.append(word)
            continue
        words.pop()
        name = word.partition("=")[0]
        if name not in seen:
            seen.add(name)
            kept += [word, "--set"]
    return shlex.join(["python", "-m", *reversed(kept)])


def _is_for_programs(command: Command, at: int) -> bool:
    """Whether a word asks for JSON on stdout; `bench.live` writes JSON into a file that follows."""
    return command[at] == "--json" and (at + 1 == len(command) or command[at + 1].startswith("--"))


def holds_run(folder: Path) -> bool:
    """Whether a training command refuses to begin in a folder."""
    files = (checkpoint.LAST, checkpoint.BEST, checkpoint.ADAPTER)
    return any((folder / file).exists() for file in files)


def resumed(command: Command, folder: Path) -> Command:
    """Return the command that goes on with what a command has begun in its folder."""
    kept = [word for word in command if word in ("--json", "--fuse")]
    model, original = _flag(command, "--model"), _flag(command, "--original")
    head = takewhile(lambda word: not word.startswith("--"), command)
    return (*head, *model, "--out", str(folder), "--resume", *original, *kept)


def another(command: Command, folder: Path) -> Command:
    """Return a command that trains beside the run in its folder, if one is there already."""
    if not holds_run(folder):
        return command
    fresh = folder.with_name(f"{folder.name}-again")
    names = {("--out", str(folder)): str(fresh), ("--name", folder.name): fresh.name}
    pairs = zip(("", *command), command, strict=False)
    return tuple(names.get(pair, pair[1]) for pair in pairs)


def set_aside(folder: Path) -> Path:
    """Return where the run of other inputs is kept while a new one takes its folder."""
    return folder.with_name(f"{folder.name}.before")


def moves_of(folder: Path) -> list[str]:
    """Return, as lines for a shell, what comes before a run that begins anew in a folder."""
    if not folder.exists():
        return []
    aside = set_aside(folder)
    lines = [f"# {aside} is deleted first"] if aside.exists() else []
    return [*lines, shlex.join(["mv", str(folder), str(aside)])]


def _flag(command: Command, name: str) -> Command:
    if name not in command:
        return ()
    place = command.index(name)
    return command[place : place + 2]
