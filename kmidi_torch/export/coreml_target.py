"""Export to Core ML: `python -m kmidi_torch.export coreml`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.coreml.chatter import quiet
from kmidi_torch.export.coreml.convert import Converter
from kmidi_torch.export.coreml.functions import ADVICE, functions_of
from kmidi_torch.export.coreml.job import Job
from kmidi_torch.export.coreml.package import describe
from kmidi_torch.export.coreml.quantize import QUANTISATIONS, Quantisation
from kmidi_torch.export.report import Difference, Report, size_of
from kmidi_torch.export.request import open_request, replacing

__all__ = ["add_arguments", "export"]

_MACOS = (14, 15)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this target."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        help="of computation; default: fp16, norms and sums in fp32",
    )
    parser.add_argument(
        "--quantize", choices=QUANTISATIONS, help="weights of layers in 8 or 4 bits"
    )
    parser.add_argument(
        "--quantize-after",
        action="store_true",
        help="first prove the package in fp32 with whole weights, then quantise that",
    )
    parser.add_argument(
        "--macos",
        type=int,
        choices=_MACOS,
        help="oldest system; default: 14, for the generator 15, which is the first with several "
        "functions in a package (14: `step` alone)",
    )
    parser.add_argument("--points", type=int, metavar="N", help="of a cloud; default: 1200")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of a clip to recognise; default: as trained"
    )


def export(args: argparse.Namespace, announce: Callable[[str], None]) -> Report:
    """Make a Core ML package, compare it with the model, keep it if it is equal.

    Args:
        args: flags.
        announce: is told what is being done.

    Raises:
        KmidiError: for a checkpoint or flags that cannot be used.
        ImportError: if coremltools is not installed.
    """
    start = time.perf_counter()
    with quiet():
        import coremltools  # noqa: F401 - to fail before minutes of work
    precision = _precision(args)
    request = open_request(args, ".mlpackage", folder=True)
    macos = args.macos or (15 if args.model == "midi_generator" else 14)
    functions = functions_of(request, multifunction=macos >= 15)
    converter = Converter(args.model, precision == "fp16", macos)
    quantisation = None
    if args.quantize is not None:
        quantisation = Quantisation(args.quantize, grouped=macos >= 15)
    job = Job(request, functions, converter, announce)
    with replacing(request.out) as draft:
        job.prepare()
        if args.quantize_after:
            job.write(draft.path, None)
            job.differences = [
                Difference(f"{one.what}, whole weights", one.largest, one.bound)
                for one in job.differences
            ]
        if not args.quantize_after or all(one.holds for one in job.differences):
            job.write(draft.path, quantisation)
        told = precision + (f", {args.quantize} weights" if args.quantize else "")
        describe(draft.path, functions, request.loaded, told, job.measured())
        report = Report(
            model=args.model,
            target="coreml",
            precision=told,
            path=request.out,
            megabytes=size_of(draft.path),
            seconds=time.perf_counter() - start,
            differences=job.differences,
            milliseconds=job.milliseconds,
            notes=[*job.notes, f"needs macOS {macos} or later", ADVICE[args.model]]
            + ([request.loaded.notice] if request.loaded.notice else []),
        )
        draft.proved = report.holds
    return report


def _precision(args: argparse.Namespace) -> str:
    if not args.quantize_after:
        return args.precision or "fp16"
    if args.quantize is None:
        raise KmidiError(
            f"--quantize-after says when, not how: add --quantize {' or '.join(QUANTISATIONS)}."
        )
    if args.precision == "fp16":
        raise KmidiError(
            "--quantize-after quantises a package that computes in fp32; leave out --precision "
            "fp16."
        )
    return "fp32"
