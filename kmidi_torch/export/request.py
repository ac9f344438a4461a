"""What is to be exported, and how what comes out takes its place only once it is proved equal."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmidi_mlx.adapter_file import open_adapters
from kmidi_mlx.checkpoint import BEST
from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.errors import KmidiError
from kmidi_torch.loading import load_generator, load_recognizer, load_spectocloud
from kmidi_torch.models.adapters import adapt

__all__ = ["Draft", "Request", "open_request", "replacing"]

_LOADERS: dict[str, Callable[[Path], Loaded[Any, Any]]] = {
    "midi_generator": load_generator,
    "spectocloud": load_spectocloud,
    "emotion_recognizer": load_recognizer,
}
# one of them lies in every package that is a folder
_PACKAGE_FILES = ("Manifest.json", "main.mlirb")


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        model: name of the model.
        loaded: it, in fp32 on the CPU, with its adapters.
        out: file or folder to make.
        options: flags of the target.
    """

    model: str
    loaded: Loaded[Any, Any]
    out: Path
    options: argparse.Namespace


def open_request(
    args: argparse.Namespace, suffix: str, *, variant: str = "", folder: bool = False
) -> Request:
    """Load the model that the flags name.

    Args:
        args: parsed, with `model`, `checkpoint`, `adapters`, `out`.
        suffix: of what is made, such as `.onnx`; it lands beside the weights unless `out` is given.
        variant: put before the suffix there, such as `-fp16`.
        folder: whether a folder is made, not a file.

    Raises:
        KmidiError: when there is no such checkpoint or adapter or it cannot be used, or `out` ends
            wrongly or cannot be made.
    """
    folder_of_base = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    adapters = open_adapters(args.adapters, folder_of_base, args.model)
    out = args.out
    if out is None:
        names = "".join(f"-{adapter.name}" for adapter, _ in adapters)
        out = folder_of_base / (Path(BEST).stem + names + variant + suffix)
    if out.suffix != suffix:
        raise KmidiError(f"--out {out}: give a name that ends in {suffix}.")
    if not out.parent.is_dir():
        raise KmidiError(f"--out {out}: there is no folder {out.parent}; make it first.")
    if not os.access(out.parent, os.W_OK):
        raise KmidiError(f"--out {out}: the folder {out.parent} may not be written to.")
    if out.exists() and out.is_dir() != folder:
        raise KmidiError(
            f"--out {out} is a {'file' if folder else 'folder'} and would not be replaced; give "
            "another name."
        )
    if folder and out.is_dir() and not any((out / name).exists() for name in _PACKAGE_FILES):
        raise KmidiError(
            f"--out {out} is a folder but no {suffix} package and would not be replaced; give "
            "another name."
        )
    loaded = _LOADERS[args.model](args.checkpoint)
    adapt(loaded.model, adapters)
    if adapters:
        told = [f"{adapter.name}:{scale:g}" for adapter, scale in adapters]
        loaded = replace(loaded, metadata={**loaded.metadata, "adapters": told})
    return Request(args.model, loaded, out, args)


@dataclass
class Draft:
    """What is being made.

    Attributes:
        path: where to make it.
        proved: to be set once it is proved equal to the model; otherwise it is thrown away.
    """

    path: Path
    proved: bool = False


@contextmanager
def replacing(out: Path) -> Iterator[Draft]:
    """Yield a draft beside `out` that takes its place when the block ends well and it is proved.

    When not, what was there before stays, and nothing half made is left.
    """
    draft = Draft(out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}"))
    try:
        yield draft
        if draft.proved:
            _put(draft.path, out)
    finally:
        if draft.path.is_dir():
            shutil.rmtree(draft.path, ignore_errors=True)
        else:
            draft.path.unlink(missing_ok=True)


def _put(made: Path, out: Path) -> None:
    _make_readable(made)
    for file in [made] if made.is_file() else [file for file in made.rglob("*") if file.is_file()]:
        with file.open("rb") as opened:  # on the disk before its name is
            os.fsync(opened.fileno())
    if out.is_dir() and not out.is_symlink():
        # a folder cannot be replaced at once: it steps aside first
        aside = out.with_name(f".{out.stem}.{os.getpid()}.old{out.suffix}")
        out.rename(aside)
        made.rename(out)
        shutil.rmtree(aside)
    else:
        made.replace(out)


def _make_readable(made: Path) -> None:
    """Give what was made the modes of any new file and folder; writers differ in theirs."""
    probe = made.with_name(f"{made.name}.mode")
    probe.mkdir()
    folder_mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    # a file is a folder that cannot be entered
    file_mode = folder_mode & 0o666
    for path in [made, *made.rglob("*")] if made.is_dir() else [made]:
        path.chmod(folder_mode if path.is_dir() else file_mode)
