"""The live application for a while, as it is: frames, tokens, lateness of notes, memory.

`python -m bench.live [--seconds 60] [--paced] [--changes SECONDS] [--generator DIR]
[--spectocloud DIR] [--set OPTION=VALUE] [--require] [--json FILE|-] [--save]`

Both networks in full size play through the real engine, player and sound; without checkpoints they
have random weights, which cost the same a token but write other music. Paced, frames come 60 times
a second as in the application; otherwise as fast as they can, up to 240. With `--changes` emotion,
tempo and sampling change every so many seconds, at random but the same in every run; without, it
plays undisturbed. `--require` ends with 1 when the music did not hold: an underrun, a note that
hangs, a thread that is left over, less than a beat written ahead while nothing was changed,
lateness above 5 ms at the 99th percentile, on a GPU fewer than 55 clouds a second, or memory that
grew by more than 50 MB in the second half (in the first the ring of the model fills).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import report
from kmidi_mlx.checkpoint import BEST, FORMAT_VERSION, save_arrays
from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.config_file import config_to_dict, load_sections
from kmidi_mlx.emotion import LABELS
from kmidi_mlx.live.concert import Concert
from kmidi_mlx.live.stats import resident_gb
from kmidi_mlx.live.thread_priority import STEADY, hurry
from kmidi_mlx.live_config import LiveConfig

COLUMNS = (
    "seconds", "fps", "frame_ms_p50", "frame_ms_p95", "frame_ms_p99", "token_ms_p50",
    "token_ms_p99", "tokens_per_second", "lateness_ms_p50", "lateness_ms_p99", "lateness_ms_max",
    "lookahead_min_beats", "underruns", "hanging", "notes", "replans", "quality", "memory_start_gb",
    "memory_end_gb",
)  # fmt: skip
SETTLE_SECONDS = 3.0
MOST_GROWTH_GB = 0.05
MOST_LATE_MS = 5.0
LEAST_CLOUDS = 55.0
# as `python -m kmidi_mlx.live` has it
SWITCH_SECONDS = 0.0005


class Account:
    """A sink that counts notes, and knows which have not ended."""

    name = "account"
    lead_seconds = 0.0

    def __init__(self) -> None:
        self.notes = 0
        self.open: dict[int, float] = {}
        self.wrong = 0

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Count a note."""
        self.notes += 1
        self.wrong += pitch in self.open
        self.open[pitch] = at

    def note_off(self, pitch: int, at: float) -> None:
        """Strike it off."""
        self.wrong += self.open.pop(pitch, None) is None

    def silence(self) -> None:
        """Expect that every note has been ended."""
        self.wrong += len(self.open)
        self.open.clear()

    def close(self) -> None:
        """Nothing is to be given back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play, measure, print; 1 when `--require` is not met."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.live")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--paced", action="store_true", help="60 frames a second, as it is used")
    parser.add_argument("--changes", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--spectocloud", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--require", action="store_true")
    report.add_arguments(parser)
    args = parser.parse_args(argv)
    sys.setswitchinterval(SWITCH_SECONDS)
    hurry(STEADY)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = load_sections(LiveConfig, [], _options(args, folder))
        row = {
            "paced": args.paced,
            "weights": "trained" if args.generator else "random",
            **play(config, folder, args.seconds, args.changes),
        }
    report.publish("live", [row], COLUMNS, args)
    missed = shortcomings(row)
    for sentence in missed:
        print(sentence, file=sys.stderr)
    return 1 if args.require and missed else 0


def play(config: LiveConfig, folder: Path, seconds: float, changes: float) -> report.Row:
    """Play for some seconds after everything has settled, and return what was measured.

    Args:
        config: of the application.
        folder: for recordings, of which there are none.
        seconds: how long.
        changes: seconds between two changes; 0: none.
    """
    concert = Concert(config, folder)
    account = Account()
    concert.player.add(account)
    concert.start()
    try:
        concert.engine.ready.wait()
        concert.raise_failure()
        warm_gb = resident_gb()
        concert.apply("transport", {"action": "play"})
        _wait_until(lambda: concert.clock.running, concert)
        time.sleep(SETTLE_SECONDS)
        concert.figures.clear()
        concert.player.lateness.clear()
        start_gb, notes = resident_gb(), account.notes
        threads = threading.active_count()
        half_gb = _perform(concert, seconds, changes)
        end_gb = resident_gb()
        more_threads = threading.active_count() - threads
        figures, lateness = concert.figures.report(), concert.player.lateness
        tokens = figures["tokens"]
        played = account.notes - notes
        conductor = concert.engine.conductor
        concert.apply("transport", {"action": "stop"})
        _wait_until(lambda: conductor is None or conductor.playing == "stopped", concert)
        seconds_a_beat = 60.0 / config.music.tempo
        least = figures["lookahead_min_seconds"]
        return {
            **figures,
            "seconds": seconds,
            "changes": changes,
            "device": _device(),
            "tokens_per_second": tokens / seconds,
            "lateness_ms_p50": lateness.percentile_ms(50),
            "lateness_ms_p99": lateness.percentile_ms(99),
            "lateness_ms_max": lateness.largest_ms,
            "lookahead_min_beats": None if least is None else least / seconds_a_beat,
            "hanging": len(account.open) + account.wrong,
            "notes": played,
            "replans": 0 if conductor is None else conductor.replans,
            "quality": max(figures["quality_seconds"], key=figures["quality_seconds"].get),
            "memory_warm_gb": warm_gb,
            "memory_start_gb": start_gb,
            "memory_half_gb": half_gb,
            "memory_end_gb": end_gb,
            "more_threads": more_threads,
        }
    finally:
        concert.close()


def shortcomings(row: report.Row) -> list[str]:
    """Say what did not hold, one sentence each."""
    checks = {
        f"{row['underruns']} times music was due and none was written": row["underruns"] > 0,
        f"{row['hanging']} notes did not end as they should": row["hanging"] > 0,
        f"notes were {row['lateness_ms_p99']:.1f} ms late at the 99th percentile": (
            row["lateness_ms_p99"] > MOST_LATE_MS
        ),
        f"memory grew from {row['memory_half_gb']:.2f} to {row['memory_end_gb']:.2f} GB": (
            row["memory_end_gb"] - row["memory_half_gb"] > MOST_GROWTH_GB
        ),
        f"{row['more_threads']} threads were left over": row["more_threads"] > 0,
        f"only {row['lookahead_min_beats']} beats were written ahead": (
            not row["changes"] and (row["lookahead_min_beats"] or 0.0) < 1.0
        ),
        f"{row['fps']:.1f} clouds a second are fewer than {LEAST_CLOUDS:g}": (
            row["device"] == "gpu" and row["fps"] < LEAST_CLOUDS
        ),
    }
    return [sentence for sentence, missed in checks.items() if missed]


def _options(args: argparse.Namespace, folder: Path) -> list[str]:
    generator = args.generator or _random_weights(MidiGeneratorConfig(), folder / "generator")
    cloud = args.spectocloud or _random_weights(SpectocloudConfig(), folder / "spectocloud")
    return [
        f"models.generator={str(generator)!r}",
        f"models.spectocloud={str(cloud)!r}",
        f"loop.frames_per_second={60 if args.paced else 240}",
        *args.overrides,
    ]


def _random_weights(config: RunConfig, folder: Path) -> Path:
    """Save a network of full size that has learnt nothing."""
    from mlx.utils import tree_flatten

    from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
    from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

    model: Any
    if isinstance(config, MidiGeneratorConfig):
        model = EmotionMIDITransformer(config.model)
    else:
        model = SpectocloudViT(config.model)  # type: ignore[arg-type]
    model.initialise(0)
    arrays: dict[str, NDArray[Any]] = {
        name: np.array(value) for name, value in tree_flatten(model.parameters())
    }
    folder.mkdir()
    about = {
        "format_version": FORMAT_VERSION, "model": config.name, "config": config_to_dict(config),
    }  # fmt: skip
    save_arrays(folder / BEST, arrays, about)
    return folder


def _perform(concert: Concert, seconds: float, changes: float) -> float:
    """Let it play, and change something every now and then; return the memory at half time."""
    rng = np.random.default_rng(0)
    begun = told = time.monotonic()
    half_gb = 0.0
    while (left := begun + seconds - time.monotonic()) > 0:
        if not half_gb and left <= seconds / 2:
            half_gb = resident_gb()
        time.sleep(min(left, changes or 1.0, 1.0))
        concert.raise_failure()
        if changes and time.monotonic() - told >= changes:
            told = time.monotonic()
            _change(concert, rng)
    return half_gb


def _change(concert: Concert, rng: np.random.Generator) -> None:
    """Do what a person does, at random."""
    which = rng.choice(6, p=(0.5, 0.2, 0.1, 0.1, 0.05, 0.05))
    if which == 0:
        concert.apply("update_emotion", {"label": str(rng.choice(sorted(LABELS)))})
    elif which == 1:
        concert.apply("set", {"music.tempo": float(rng.integers(90, 130))})
    elif which == 2:
        concert.apply("set", {"sampling.temperature": float(rng.uniform(0.7, 1.0))})
    elif which == 3:
        concert.apply("set", {"music.chords": str(rng.choice(["", "C Am F G", "Dm G7 C"]))})
    elif which == 4:
        concert.apply("transport", {"action": "panic"})
    else:
        concert.apply("transport", {"action": "pause"})
        time.sleep(0.3)
        concert.apply("transport", {"action": "play"})


def _wait_until(condition: Callable[[], bool], concert: Concert) -> None:
    while not condition():
        concert.raise_failure()
        time.sleep(0.01)


def _device() -> str:
    import mlx.core as mx

    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


if __name__ == "__main__":
    sys.exit(main())
