"""`python -m kmidi_torch.export pt2`: one .pt2 file that PyTorch runs without this package."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kmidi_torch.export.exportable import Exportable
from kmidi_torch.export.precision import PRECISIONS
from kmidi_torch.export.report import Report, median_milliseconds, size_of, unchanged
from kmidi_torch.export.request import open_request, replacing
from kmidi_torch.export.ring import Run
from kmidi_torch.export.subject import Subject, add_subject_arguments, check_subject

__all__ = ["METADATA", "add_arguments", "export"]

#: Name of the file inside the .pt2 that says what it is, in JSON.
METADATA = "kmidi.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this target."""
    add_subject_arguments(parser)


def export(args: argparse.Namespace, announce: Callable[[str], None]) -> Report:
    """Make the file, prove it, keep it if it holds.

    Args:
        args: the flags.
        announce: told what is being done.

    Raises:
        KmidiError: when the checkpoint cannot be used or the file cannot be made.
    """
    check_subject(args)
    variant = "-sampling" * args.sampling
    subject = Subject.of(open_request(args, ".pt2", variant=variant), PRECISIONS["fp32"])
    request = subject.request
    start = time.perf_counter()
    announce(f"exporting {request.loaded.path} for PyTorch ...")
    with replacing(request.out) as draft:
        program = subject.exportable.traced()
        _save(program, draft.path, subject.metadata())
        announce("comparing it with the model ...")
        run = _opened(draft.path, subject.exportable)
        differences = subject.prove(run)
        # what was measured goes into the file, which has to compute the same after that
        _save(program, draft.path, subject.metadata(differences))
        live, words = subject.live_inputs()
        before, run = run(live), _opened(draft.path, subject.exportable)
        differences.append(unchanged(before, run(live)))
        report = Report(
            model=request.model,
            target="pt2",
            precision=subject.precision.name,
            path=request.out,
            megabytes=size_of(draft.path),
            seconds=time.perf_counter() - start,
            differences=differences,
            milliseconds=median_milliseconds(run, live),
            notes=subject.notes(f"time: PyTorch, {torch.get_num_threads()} threads, {words}"),
        )
        draft.proved = report.holds
    return report


def _save(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def _opened(path: Path, exportable: Exportable) -> Run:
    """The file, as PyTorch reads it, as a `Run`."""
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = [
            torch.from_numpy(np.ascontiguousarray(inputs[port.name])) for port in exportable.inputs
        ]
        with torch.no_grad():
            outputs = module(*given)
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return {
            port.name: value.numpy() for port, value in zip(exportable.outputs, found, strict=True)
        }

    return run
