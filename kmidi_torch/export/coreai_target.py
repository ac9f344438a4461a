"""`python -m kmidi_torch.export coreai`: one .aimodel, proved in Core AI's own runtime.

Core AI is Apple's successor of Core ML, in macOS 27 and later. An asset has several functions over
the same weights: `main`, whose lengths the caller chooses with every call, and for processors that
want to know all lengths beforehand `fixed_...`: of the generator `fixed_prefill` and `fixed_step`,
which read 64 events and one, with as many places as the model looks back on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.coreai_file import FREE, CoreaiRun, build, check_packages, describe, save
from kmidi_torch.export.precision import PRECISIONS
from kmidi_torch.export.report import Report, median_milliseconds, size_of
from kmidi_torch.export.request import open_request, replacing
from kmidi_torch.export.samples import Inputs, piece_ids
from kmidi_torch.export.subject import Subject, add_subject_arguments, check_subject
from kmidi_torch.models.kv_cache import REBASE_CONTEXTS

__all__ = ["PREFILL", "add_arguments", "export"]

#: Events that `fixed_prefill` reads at once.
PREFILL = 64
_PRECISIONS = {
    "fp32": PRECISIONS["fp32"],
    # Core AI's interpreter adds up in half precision too, where others only store what they found
    "fp16": replace(PRECISIONS["fp16"], bound=1e-1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this target."""
    parser.add_argument(
        "--precision",
        choices=tuple(_PRECISIONS),
        default="fp32",
        help="fp16: weights, computation and the generator's cache in half precision; default fp32",
    )
    add_subject_arguments(parser)


def export(args: argparse.Namespace, announce: Callable[[str], None]) -> Report:
    """Make the asset, prove it, keep it if it holds.

    Args:
        args: the flags.
        announce: told what is being done.

    Raises:
        KmidiError: when the checkpoint cannot be used or the asset cannot be made.
        ImportError: when a package is missing.
    """
    check_packages()
    check_subject(args)
    if args.sampling:
        raise KmidiError(
            "--sampling: Core AI's converter knows no sorting, which a draw needs; leave it out "
            "and draw from the logits."
        )
    precision = _PRECISIONS[args.precision]
    half = precision.name == "fp16"
    variant = "-fp16" * half
    subject = Subject.of(open_request(args, ".aimodel", variant=variant, folder=True), precision)
    request = subject.request
    start = time.perf_counter()
    announce(f"exporting {request.loaded.path} to Core AI in {precision.name} ...")
    fixed = _fixed_lengths(subject)
    live, words = subject.live_inputs()
    milliseconds, timed = None, "no time: Core AI's interpreter computes fp16 number by number"
    with replacing(request.out) as draft:
        save(build(subject.exportable, fixed), draft.path, subject.exportable.about)
        announce("comparing it with the model in Core AI's interpreter ...")
        with CoreaiRun(draft.path) as run:
            # hours where it computes number by number: then single calls have to do
            differences = subject.prove_live(run, FREE) if half else subject.prove(run)
            for name, lengths in fixed.items():
                function = f"fixed_{name}"
                inputs = _fixed_inputs(subject, live, lengths)
                once = partial(run, function=function)
                differences += subject.prove_once(once, inputs, function)
            if not half:
                milliseconds = median_milliseconds(run, live)
                timed = f"time: Core AI's interpreter on the CPU, one thread, {words}"
        functions = {f"fixed_{name}": dict(lengths) for name, lengths in fixed.items()}
        known = subject.metadata(differences)
        describe(draft.path, {**known, "fixed_functions": functions})
        report = Report(
            model=request.model,
            target="coreai",
            precision=precision.name,
            path=request.out,
            megabytes=size_of(draft.path),
            seconds=time.perf_counter() - start,
            differences=differences,
            milliseconds=milliseconds,
            notes=subject.notes(timed, "runs in Core AI, in macOS 27 and later"),
        )
        draft.proved = report.holds
    return report


def _fixed_lengths(subject: Subject) -> dict[str, Mapping[str, int]]:
    """Lengths of the functions for processors that want to know them beforehand."""
    request = subject.request
    if request.model == "midi_generator":
        places = request.loaded.config.model.context_length - 1
        return {
            name: {"batch": 1, "events": events, "places": places}
            for name, events in (("prefill", PREFILL), ("step", 1))
        }
    if request.model == "spectocloud":
        return {"frame": {"batch": 1}}
    frames = subject.live_inputs()[0]["frames"].shape[1]
    return {"clip": {"batch": 1, "patches": frames // request.loaded.config.model.patch_frames}}


def _fixed_inputs(subject: Subject, live: Inputs, lengths: Mapping[str, int]) -> Inputs:
    """Return what a function with fixed lengths is called with.

    The generator: at the end of what its rotary table knows, with places in no order, of which
    some hold what is too old and some nothing.
    """
    if subject.request.model != "midi_generator":
        return live
    config = subject.request.loaded.config.model
    events, places = lengths["events"], lengths["places"]
    rng = np.random.default_rng(0)
    position = (REBASE_CONTEXTS + 1) * config.context_length - events
    ages = rng.permutation(np.linspace(-1, 1.3 * config.context_length, places).astype(np.int32))
    shape = (1, live["past_keys"].shape[1], places, config.head_dim)
    cache = live["past_keys"].dtype
    return {
        **live,
        "ids": piece_ids(events)[None],
        "position": np.array([position], np.int32),
        "slots": np.where(ages < 1, -1, position - ages).astype(np.int32),
        "past_keys": rng.normal(size=shape).astype(cache),
        "past_values": rng.normal(size=shape).astype(cache),
    }
