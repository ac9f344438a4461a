"""How fast the parts of Spectocloud are: `python -m bench.spectocloud [--only SECTION]`.

chamfer  forward and backward pass of the Chamfer distance: the (batch, n, m, 3) broadcast, the
         |a|² + |b|² - 2ab matrix that autograd keeps, and ours. They take turns, so that a noisy
         machine is noisy for all; peak memory is measured alone, before.
mel      the streaming spectrogram, fed the samples of 1/60 s at a time.
graph    launching primitives and floating-point operations of one compiled frame.
frame    one frame at batch 1, beside transformers' Swin of the same stages in eager PyTorch and in
         ONNX Runtime (extra `peers`). They take turns, with OPENBLAS_NUM_THREADS threads each.
detail   how far a trained network (`--checkpoint`) is from the engine at every level of detail, on
         moments of `--songs`, and its time of one frame.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import kmidi_mlx
from bench import kernels
from bench.report import Row, add_arguments, publish, spread
from bench.swin_peers import missing_packages, swin_peers
from kmidi_mlx.audio import MelStream
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.data.song_file import read_song_file
from kmidi_mlx.emotion import from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.models.loading import load_spectocloud
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud import (
    DEFAULT_POINTS,
    FRAMES_PER_SECOND,
    LEVELS_OF_DETAIL,
    clouds_at,
)
from kmidi_mlx.training.cloud_losses import chamfer

Loss = Callable[[mx.array, mx.array], mx.array]

COLUMNS = (
    "section",
    "case",
    "batch",
    "points",
    "ms",
    "ms_p10",
    "ms_p90",
    "peak_mb",
    "times_faster",
    "kernels",
    "mflop",
    "weights",
    "chamfer_1000",
    "identity_1000",
)
_SAMPLE_RATE = 44_100
_MOMENTS = 6
PIECES = Path(kmidi_mlx.__file__).parent / "assets" / "pop909"


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    if args.repeats < 1:
        raise KmidiError(f"--repeats {args.repeats}: give 1 or more.")
    chosen = args.only or [name for name in SECTIONS if name != "detail" or args.checkpoint]
    if not args.only and (missing := missing_packages()):
        chosen.remove("frame")
        print(f"Section frame is left out: it needs {', '.join(missing)} (extra `peers`).")
    rows = [{"section": section, **row} for section in chosen for row in SECTIONS[section](args)]
    publish("spectocloud", rows, COLUMNS, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m bench.spectocloud",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="these sections only"
    )
    parser.add_argument(
        "--repeats", type=int, default=15, metavar="N", help="times each case is run (default: 15)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="trained network, for section detail"
    )
    parser.add_argument(
        "--songs",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=sorted(PIECES.glob("*.mid")),
        help="MIDI or sound files, for section detail (default: the pieces that kmidi ships)",
    )
    add_arguments(parser)
    return parser


def chamfer_section(args: argparse.Namespace) -> list[Row]:
    """Chamfer distance in three forms at batch 8, and ours at batch 32."""
    losses: dict[str, Loss] = {
        "(B,N,M,3) broadcast": by_broadcast,
        "|a|²+|b|²-2ab": by_product,
        "ours": chamfer,
    }
    rows = _chamfer_rows(losses, 8, args.repeats)
    return rows + _chamfer_rows({"ours": chamfer}, 32, args.repeats)


def by_broadcast(a: mx.array, b: mx.array) -> mx.array:
    """Chamfer distance (batch,) from the differences of all pairs of points."""
    return _both_ways(mx.square(a[:, :, None] - b[:, None]).sum(-1))


def by_product(a: mx.array, b: mx.array) -> mx.array:
    """Chamfer distance (batch,) from one product, with a gradient through the whole matrix."""
    norm_a, norm_b = mx.square(a).sum(-1), mx.square(b).sum(-1)
    return _both_ways(norm_a[:, :, None] + norm_b[:, None] - 2 * a @ b.swapaxes(1, 2))


def _both_ways(squares: mx.array) -> mx.array:
    return squares.min(2).mean(1) + squares.min(1).mean(1)


def _chamfer_rows(losses: dict[str, Loss], batch: int, repeats: int) -> list[Row]:
    rng = np.random.default_rng(0)
    a, b = (
        mx.array(rng.uniform(-1, 1, (batch, DEFAULT_POINTS, 3)).astype(np.float32))
        for _ in range(2)
    )
    steps = {name: _step(loss, a, b) for name, loss in losses.items()}
    peaks = {name: _peak_mb(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(1e3 * _seconds(step))
    slowest = float(np.median(next(iter(times.values()))))
    rows = []
    for name, samples in times.items():
        row: Row = {"case": name, "batch": batch, "points": DEFAULT_POINTS}
        row |= spread("ms", samples)
        row["peak_mb"] = peaks[name]
        if len(losses) > 1:
            row["times_faster"] = slowest / row["ms"]
        rows.append(row)
    return rows


def _step(loss: Loss, a: mx.array, b: mx.array) -> Callable[[], None]:
    """Loss and gradient of both clouds as one compiled graph."""
    graph = mx.compile(mx.value_and_grad(lambda a, b: loss(a, b).mean(), argnums=(0, 1)))
    return lambda: mx.eval(graph(a, b))


def _peak_mb(step: Callable[[], None]) -> float:
    """Memory of one step in MB, its inputs with it."""
    step()  # compiles
    mx.clear_cache()
    mx.reset_peak_memory()
    step()
    return mx.get_peak_memory() / 1e6


def mel_section(args: argparse.Namespace) -> list[Row]:
    """Streaming mel spectrogram, a sixtieth of a second of sound at a time."""
    stream, rng = MelStream(), np.random.default_rng(0)
    frames = 60 * args.repeats
    sound = rng.uniform(-1, 1, _SAMPLE_RATE * frames // FRAMES_PER_SECOND).astype(np.float32)
    pieces = np.array_split(sound, frames)
    for piece in pieces[:60]:
        stream.push(piece)
    times = [1e3 * _seconds(lambda piece=piece: stream.push(piece)) for piece in pieces]  # type: ignore[misc]
    row: Row = {"case": "stream, 1/60 s", "frames": frames}
    return [row | spread("ms", times) | {"ms_longest": max(times)}]


#: Variants of the network, by name.
VARIANTS = {
    "kmidi": SpectocloudVitConfig(),
    "kmidi, shift: false": SpectocloudVitConfig(shift=False),
    "kmidi, activation: gelu": SpectocloudVitConfig(activation="gelu"),
}


def graph_section(args: argparse.Namespace) -> list[Row]:
    """What one compiled frame asks of the machine, conditions and points included."""
    rows: list[Row] = []
    for name, config in VARIANTS.items():
        frame, plain, weights = _frame(config)
        launched = kernels.count(lambda frame=frame: [frame()])  # type: ignore[misc]
        operations = kernels.products(lambda plain=plain: [plain()])  # type: ignore[misc]
        row: Row = {"case": name, "batch": 1, "points": DEFAULT_POINTS, "weights": weights}
        rows.append(row | {"kernels": launched.total(), "mflop": operations / 1e6})
    return rows


def frame_section(args: argparse.Namespace) -> list[Row]:
    """Time of one frame, ours and the peers' in turns."""
    threads = int(os.environ.get("OPENBLAS_NUM_THREADS") or os.cpu_count() or 1)
    peers, weights = swin_peers(VARIANTS["kmidi"], threads)
    works: dict[str, Callable[[], object]] = {}
    sizes: dict[str, int] = {}
    for name, config in VARIANTS.items():
        frame, _, sizes[name] = _frame(config)
        works[name] = lambda frame=frame: mx.eval(frame())  # type: ignore[misc]
    for name, work in peers.items():
        works[f"Swin, {name}"], sizes[f"Swin, {name}"] = work, weights
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(args.repeats + 2):
        for name, work in works.items():
            taken = 1e3 * _seconds(work)
            if turn >= 2:  # the first ones compile
                times[name].append(taken)
    ours = np.asarray(times["kmidi"])
    rows = []
    for name, samples in times.items():
        row: Row = {"case": name, "batch": 1, "threads": threads, "weights": sizes[name]}
        row |= {"points": DEFAULT_POINTS if name in VARIANTS else ""} | spread("ms", samples)
        # of pairs from the same turn, so that a noisy machine is noisy for both
        rows.append(row | spread("times_faster", np.asarray(samples) / ours))
    return rows


def detail_section(args: argparse.Namespace) -> list[Row]:
    """Distance of engine and network at every level of detail."""
    if args.checkpoint is None:
        raise KmidiError("Section detail measures a trained network: give --checkpoint DIR.")
    model = load_spectocloud(args.checkpoint).model
    emotion = from_label("happy")
    songs = []
    for path in args.songs:
        file = read_song_file(path)
        song = file.song(file.sound(), emotion)
        shares = np.linspace(0.1, 0.9, _MOMENTS)
        songs.append((song, sorted({int(share * len(song)) for share in shares})))
    rows: list[Row] = []
    for points in LEVELS_OF_DETAIL:
        network = Network(model, points)
        distances, misses, times = [], [], []
        for song, moments in songs:
            states = clouds_at(song, moments, points)
            for moment, state in zip(moments, states, strict=True):
                frame, felt = song[moment], np.array([state.emotion], np.float32)
                started = time.perf_counter()
                (drawn,) = network.clouds(frame.window[None], frame.features[None], felt)
                times.append(1e3 * (time.perf_counter() - started))
                apart = mx.mean(
                    chamfer(mx.array(drawn[None, :, :3]), mx.array(state.cloud[None, :, :3]))
                )
                distances.append(1e3 * apart.item())
                misses.append(1e3 * float(np.square(drawn - state.cloud)[:, :3].sum(1).mean()))
        row: Row = {"case": f"{len(songs)} songs", "batch": 1, "points": points}
        row |= spread("ms", times[1:]) | spread("chamfer_1000", distances)
        rows.append(row | spread("identity_1000", misses))
    return rows


def _frame(
    config: SpectocloudVitConfig,
) -> tuple[Callable[[], mx.array], Callable[[], mx.array], int]:
    """One frame of the network, compiled and not, and how many weights it has."""
    model = SpectocloudViT(config)
    model.initialise(0)
    rng = np.random.default_rng(0)
    given = [
        mx.array(rng.uniform(size=(1, *shape)).astype(np.float32))
        for shape in ((128, 64), (32,), (64,))
    ]
    constants = model.constants(DEFAULT_POINTS)
    mx.eval(model.parameters(), given, constants.biases, constants.queries)

    def draw(windows: mx.array, features: mx.array, emotion: mx.array) -> mx.array:
        return model(windows, features, emotion, constants)

    compiled = mx.compile(draw)
    weights = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    return lambda: compiled(*given), lambda: draw(*given), weights


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


#: What can be measured, by the name that `--only` takes; each returns its rows.
SECTIONS: dict[str, Callable[[argparse.Namespace], Sequence[Row]]] = {
    "chamfer": chamfer_section,
    "mel": mel_section,
    "graph": graph_section,
    "frame": frame_section,
    "detail": detail_section,
}


if __name__ == "__main__":
    sys.exit(run(main))
