"""`python -m kmidi_mlx.hello`: the whole way once, small: real MIDI in, a trained model, music out.

It prepares the twelve pieces that come with kmidi, trains a small model for about a minute, and
writes a piece and a picture of it. Run again, it uses what is there already.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from kmidi_mlx import checkpoint
from kmidi_mlx.blas import INSTALL_HINT, fast_blas_missing
from kmidi_mlx.command import INTERRUPTED, CommandParser, Interruption, interruptible, run
from kmidi_mlx.config_file import load_config
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.emotion import from_label
from kmidi_mlx.music.events import decode, first_violation
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.pianoroll import text_roll

EMOTION = "happy"
SECONDS = 20.0


def main(argv: list[str]) -> int:
    """Prepare, train, write, and say what was done and what to do next."""
    parser = CommandParser(prog="kmidi hello", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="where to write (default: out)"
    )
    args = parser.parse_args(argv)
    if fast_blas_missing():
        print(f"hint: `{INSTALL_HINT}` makes this about ten times faster here", file=sys.stderr)
    work, piece, picture = args.out / "hello", args.out / "hello.mid", args.out / "hello.png"
    with interruptible() as interruption:
        lines = _train(work, interruption)
        if interruption.requested:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return INTERRUPTED
    lines += [*_write(work / "model", piece), *_draw(piece, picture), *_next(work, piece)]
    print("\n".join(lines))
    return 0


def _train(work: Path, interruption: Interruption) -> list[str]:
    from kmidi_mlx.training.run import train_model

    assets = files("kmidi_mlx") / "assets"
    data, model = work / "data", work / "model"
    with as_file(assets) as folder:
        print("preparing twelve pop songs for piano (POP909, MIT)", file=sys.stderr)
        report = prepare_midi([folder / "pop909" / "manifest.jsonl"], data, licence="MIT")
        config = load_config(
            "midi_generator", [folder / "hello.yaml"], [f"data.path={str(data)!r}"]
        )
    resume = (model / checkpoint.LAST).exists()
    before = _steps_done(model)
    if before < config.training.max_steps:
        print("training a small model for about a minute", file=sys.stderr)
    with checkpoint.exclusive(model):
        outcome = train_model(config, model, resume, interruption)
    done, summary = outcome.progression, report.summary
    sides = summary.splits.values() if summary else ()
    did = "trained  " if done.step > before else "trained before:"
    pieces, tokens = sum(side.pieces for side in sides), sum(side.tokens for side in sides)
    return [
        f"prepared  {pieces} pieces, {tokens:,} events: {data}",
        f"{did} {done.step} steps, {int(done.tokens):,} events, {done.seconds:.0f} s; "
        f"held-out pieces: {done.best_loss:.2f} nats per event (5.96: knows nothing): {model}",
    ]


def _write(model: Path, piece: Path) -> list[str]:
    from kmidi_mlx.generation.generator import generate
    from kmidi_mlx.models.loading import load_generator

    loaded = load_generator(model)
    ids = generate(
        loaded.model, loaded.config.sampling, SECONDS, seed=1, emotion=from_label(EMOTION)
    )
    notes = decode(ids)
    write_midi(notes, piece)
    law = first_violation(ids) or "valid, every note ends"
    return [
        f"wrote     {SECONDS:.0f} s, {len(notes)} notes, asked to be {EMOTION}; {law}: {piece}",
        "",
        text_roll(notes, seconds=SECONDS),
        "",
    ]


def _draw(piece: Path, picture: Path) -> list[str]:
    if not len(read_midi(piece)):
        return ["drew      no picture: the piece is silent", ""]
    if not find_spec("PIL"):
        return ["drew      no picture: that needs pip install 'kmidi-mlx[cloud]'", ""]
    from kmidi_mlx.data.song_file import read_song_file
    from kmidi_mlx.spectocloud import FRAMES_PER_SECOND
    from kmidi_mlx.spectocloud.film import draw_moment
    from kmidi_mlx.spectocloud.picture import write_png

    file = read_song_file(piece)
    song = file.song(file.sound(), from_label(EMOTION))
    moment = 0.6 * SECONDS
    index = min(round(moment * FRAMES_PER_SECOND), len(song) - 1)
    write_png(picture, draw_moment(song, index))
    return [f"drew      its cloud after {index / FRAMES_PER_SECOND:.0f} s: {picture}", ""]


def _next(work: Path, piece: Path) -> list[str]:
    kmidi = _how_to_call()
    # half precision, which the overlay for Macs asks for, is slow on a CPU
    precision = " --set training.precision=fp32" if sys.platform == "linux" else ""
    return [
        "A minute of training knows notes and rhythms; music and feelings take hours. What next:",
        f"  play with it     {kmidi} live --generator {work / 'model'}",
        f"  listen           open {piece}",
        f"  write another    {kmidi} generate --checkpoint {work / 'model'} --seed 2 "
        f"--out {piece.parent / 'second.mid'}",
        f"  see it move      {kmidi} picture {piece} --seconds 8 "
        f"--out {piece.with_suffix('.webp')}",
        f"  your own music   {kmidi} prepare midi FOLDER --out data/midi",
        f"  a real model     {kmidi} train --config configs/midi_generator.yaml "
        f"--config configs/m4_16gb.yaml --data data/midi{precision}",
        f"  start over       remove {work}",
    ]


def _steps_done(model: Path) -> int:
    """Steps of an earlier run in the folder; 0 when there is none."""
    save = model / checkpoint.LAST
    if not save.exists():
        return 0
    progression = checkpoint.load_arrays(save)[1].get("progression", {})
    return int(progression.get("step", 0)) if isinstance(progression, dict) else 0


def _how_to_call() -> str:
    """The command's name, with its folder where the shell would not find it."""
    if shutil.which("kmidi"):
        return "kmidi"
    beside = Path(sys.executable).parent / "kmidi"
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m kmidi_mlx"


if __name__ == "__main__":
    sys.exit(run(main))
