"""`python -m kmidi_torch.export onnx`: one .onnx file, proved in ONNX Runtime."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable

from kmidi_torch.export.onnx_file import OnnxRun, build, describe, quantized, rounded_run, save
from kmidi_torch.export.precision import PRECISIONS
from kmidi_torch.export.report import Report, median_milliseconds, size_of, unchanged
from kmidi_torch.export.request import open_request, replacing
from kmidi_torch.export.subject import Subject, add_subject_arguments, check_subject

__all__ = ["add_arguments", "export"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this target."""
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="fp16: weights, computation and the generator's cache in half precision; int8: "
        "matrices in 8 bits, for CPUs; default fp32",
    )
    add_subject_arguments(parser)


def export(args: argparse.Namespace, announce: Callable[[str], None]) -> Report:
    """Make the file, prove it, keep it if it holds.

    Args:
        args: the flags.
        announce: told what is being done.

    Raises:
        KmidiError: when the checkpoint cannot be used or the file cannot be made.
        ImportError: when a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        importlib.import_module(package)
    check_subject(args)
    precision = PRECISIONS[args.precision]
    variant = "-sampling" * args.sampling + f"-{precision.name}" * (precision.name != "fp32")
    subject = Subject.of(open_request(args, ".onnx", variant=variant), precision)
    request = subject.request
    start = time.perf_counter()
    announce(f"exporting {request.loaded.path} to ONNX in {precision.name} ...")
    with replacing(request.out) as draft:
        proto = build(subject.exportable)
        if precision.name == "int8":
            proto = quantized(proto)
        describe(proto, subject.exportable, subject.metadata())
        save(proto, draft.path)
        announce("comparing it with the model in ONNX Runtime ...")
        run = OnnxRun(draft.path)
        differences = subject.prove(run)
        live, words = subject.live_inputs()
        if precision.name == "fp16":
            # ONNX Runtime computes much of it in fp32 on a CPU; other processors will not
            differences += subject.prove_live(rounded_run(draft.path), "all rounded to fp16")
        # what was measured goes into the file, which has to compute the same after that
        describe(proto, subject.exportable, subject.metadata(differences))
        save(proto, draft.path)
        before, run = run(live), OnnxRun(draft.path)
        differences.append(unchanged(before, run(live)))
        report = Report(
            model=request.model,
            target="onnx",
            precision=precision.name,
            path=request.out,
            megabytes=size_of(draft.path),
            seconds=time.perf_counter() - start,
            differences=differences,
            milliseconds=median_milliseconds(run, live),
            notes=subject.notes(f"time: ONNX Runtime, one thread, {words}"),
        )
        draft.proved = report.holds
    return report
