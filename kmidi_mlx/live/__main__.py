"""`python -m kmidi_mlx.live`: two models play and draw; a person steers them while they do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmidi_mlx.adapter_file import add_adapter_argument
from kmidi_mlx.command import CommandParser, add_config_arguments, run
from kmidi_mlx.config_file import describe_options, load_sections
from kmidi_mlx.emotion_flags import add_emotion_arguments, emotion_from
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.thread_priority import STEADY, hurry
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.shipped import in_force

if TYPE_CHECKING:
    from kmidi_mlx.live.concert import Concert
    from kmidi_mlx.live.server import Server
    from kmidi_mlx.live.stdio import Stdio

#: Environment variables that a program which starts this one may set.
TOKEN, ORIGINS = "KMIDI_TOKEN", "KMIDI_ORIGINS"
#: Where `kmidi hello`, and so `make run`, leaves its model.
HELLO_MODEL = Path("out/hello/model")
_DESCRIPTION = (
    "Play piano music that follows a feeling, and see it as a cloud of light; open the page that "
    "it prints, or use --tui, --stdio or --headless."
)
# Threads of Python hand over to each other this often, so that notes are sent in time.
_SWITCH_SECONDS = 0.0005
_SECONDS, _LONGEST_HEADLESS = 30.0, 24 * 3600.0
_POLL_SECONDS = 0.2

# flags that are short for an option, with their help
_SHORTCUTS = {
    "--generator": ("models.generator", "DIR", "checkpoint that writes the music"),
    "--spectocloud": ("models.spectocloud", "DIR", "checkpoint that draws the cloud"),
    "--recognizer": ("models.recognizer", "DIR", "checkpoint that hears emotion"),
    "--midi-out": ("ports.output", "PORT", "play on a MIDI port; `virtual` makes one named KmiDi"),
    "--midi-in": ("ports.input", "PORT", "listen to a keyboard; `virtual` makes a port"),
    "--tempo": ("music.tempo", "BPM", "beats a minute; 120 plays as written"),
    "--key": ("music.key", "NAME", "such as C:maj or A:min"),
    "--chords": ("music.chords", "NAMES", "a chord a bar, over and over, such as 'C Am F G'"),
    "--seed": ("music.seed", "N", "of what is drawn"),
    "--mode": ("music.mode", "NAME", "what the keyboard is for: duet, accompany, continue"),
    "--sound-card": ("sound.device", "NAME", "play on a sound card; `default`: the usual one"),
    "--listen": ("cloud.listen", "FILE", "sound that the cloud hears; `input`: the microphone"),
    "--lookahead": ("loop.lookahead_seconds", "SECONDS", "music written ahead (0: two bars)"),
    "--port": ("server.port", "N", "TCP port of the page; 0: any that is free"),
    "--log": ("alerts.log", "FILE", "write a CSV line of figures every second"),
}
_SWITCHES = {
    "--feel": ("cloud.feel=true", "let what is listened to set the emotion"),
    "--lan": ("server.lan=true", "let other machines of the network in, with the token"),
    "--no-browser": ("server.open_browser=false", "do not open the page"),
}


def main(argv: list[str]) -> int:
    """Parse the flags, play until told to stop."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.help_config:
        print(describe_options(LiveConfig))
        return 0
    if args.list_ports:
        print(_ports())
        return 0
    config = _with_generator(load_sections(LiveConfig, args.config_files, _overrides(args)))
    if not args.headless and (args.seconds is not None or args.film):
        raise KmidiError("--seconds and --film belong to --headless; add it.")
    if args.seconds is not None and not 0.0 < args.seconds <= _LONGEST_HEADLESS:
        raise KmidiError(f"--seconds {args.seconds:g}: give more than 0 and up to 86400.")
    if sum((args.headless, args.stdio, args.tui)) > 1:
        raise KmidiError("--headless, --stdio and --tui exclude each other; give one of them.")
    sys.setswitchinterval(_SWITCH_SECONDS)
    # every thread: one that held the interpreter and did not run would hold up the player
    hurry(STEADY)
    # imported late, so that --help and wrong flags answer at once
    from kmidi_mlx.live.concert import Concert

    concert = Concert(config, args.out)
    # first what fails at once: a port that is taken, a token that cannot be
    server = None if args.headless else _start_server(concert)
    with _told_to_stop() as stop:
        try:
            concert.start()
            try:
                if server is None:
                    return _play_headless(concert, args, stop)
                status = _serve(concert, server, args, stop)
                if stop.is_set() and not args.stdio:
                    _say_farewell(args)
                return status
            finally:
                concert.close()
        finally:
            if server is not None:
                server.stop()


def _parser() -> CommandParser:
    parser = CommandParser(prog="kmidi live", description=_DESCRIPTION)
    add_emotion_arguments(parser)
    for flag, (option, metavar, text) in _SHORTCUTS.items():
        parser.add_argument(flag, metavar=metavar, help=text, choices=_choices(option))
    for flag, (_, text) in _SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    add_adapter_argument(parser)
    parser.add_argument(
        "--cloud-adapter",
        dest="cloud_adapters",
        action="append",
        default=[],
        metavar="NAME[:SCALE]",
        help="what `kmidi finetune` taught the checkpoint that draws; several add up",
    )
    parser.add_argument("--wait", action="store_true", help="do not play before somebody says so")
    parser.add_argument("--tui", action="store_true", help="show and steer it in this terminal")
    parser.add_argument(
        "--stdio", action="store_true", help="take commands as JSON lines, for other programs"
    )
    parser.add_argument(
        "--headless", action="store_true", help="play for --seconds, record to --out, and end"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="of --headless (default: 30)")
    parser.add_argument(
        "--film", action="store_true", help="with --headless: also make a film of the take"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("takes"),
        metavar="DIR",
        help="folder for recordings; of --headless the take itself (default: takes)",
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--list-ports", action="store_true", help="name ports and sound cards")
    parser.add_argument("--help-config", action="store_true", help="list all options and exit")
    add_config_arguments(parser)
    return parser


def _with_generator(config: LiveConfig) -> LiveConfig:
    """Play with the small model of `kmidi hello` where no other is there, and say so."""
    models = config.models
    usual = models.generator == LiveConfig().models.generator
    if not usual or in_force(Path(models.generator)).exists() or not HELLO_MODEL.exists():
        return config
    print(
        f"note: there is no {models.generator} yet, so the small model in {HELLO_MODEL} plays",
        file=sys.stderr,
    )
    return replace(config, models=replace(models, generator=str(HELLO_MODEL)))


def _overrides(args: argparse.Namespace) -> list[str]:
    """All flags as settings of options; --set wins over the others."""
    found = []
    for flag, (option, _, _) in _SHORTCUTS.items():
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None:
            found.append(f"{option}={json.dumps(value) if _is_text(option) else value}")
    for flag, (setting, _) in _SWITCHES.items():
        if getattr(args, flag[2:].replace("-", "_")):
            found.append(setting)
    for option, texts in (("adapters", args.adapters), ("cloud_adapters", args.cloud_adapters)):
        if texts:
            found.append(f"models.{option}={json.dumps(texts)}")
    emotion = emotion_from(args)
    if emotion is not None:
        found += [f"music.valence={emotion.valence}", f"music.arousal={emotion.arousal}"]
    return [*found, *args.overrides]


def _choices(option: str) -> tuple[str, ...] | None:
    """What a flag can be, so that its own complaint names the nearest; None: more than names."""
    section, _, name = option.partition(".")
    options = {item.name: item for item in fields(getattr(LiveConfig(), section))}
    choices: tuple[str, ...] | None = options[name].metadata["choices"]
    return choices


def _is_text(option: str) -> bool:
    section, _, name = option.partition(".")
    return isinstance(getattr(getattr(LiveConfig(), section), name), str)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Yield what is set by Ctrl-C, SIGTERM and SIGHUP; a second Ctrl-C interrupts."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    earlier = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            earlier[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _start_server(concert: Concert) -> Server:
    from kmidi_mlx.live.server import Server

    settings = concert.config.server
    server = Server(
        concert,
        port=settings.port,
        lan=settings.lan,
        clients=settings.clients,
        token=os.environ.get(TOKEN) or None,
        origins=tuple(os.environ.get(ORIGINS, "").split()),
        on_error=_complain,
    )
    server.start()
    concert.add_figure("clients", lambda: server.clients)
    return server


def _serve(
    concert: Concert, server: Server, args: argparse.Namespace, stop: threading.Event
) -> int:
    """Offer the page and the other front ends until told to stop."""
    if not args.stdio:
        say = sys.stderr if args.tui else sys.stdout
        print(f"kmidi plays at {server.url}", file=say, flush=True)
        if server.lan_url is not None:
            print(f"from other machines: {server.lan_url}", file=say, flush=True)
        if concert.config.server.open_browser:
            webbrowser.open(server.url)
    if not args.wait:
        concert.apply("transport", {"action": "play"})
    if args.stdio:
        about = {"port": server.port, "token": server.token, "url": server.url}
        return _talk(concert, about, stop)
    if args.tui:
        from kmidi_mlx.live.tui import run_tui

        run_tui(concert, stop)
        return 0
    return _wait(concert, stop)


def _say_farewell(args: argparse.Namespace) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        say = sys.stderr if args.tui else sys.stdout
        print("stopping; every note is ended", file=say, flush=True)


def _talk(concert: Concert, about: dict[str, Any], stop: threading.Event) -> int:
    from kmidi_mlx.live.stdio import Stdio

    talk = Stdio(concert, about=about, on_error=_complain)
    ended = threading.Event()
    threading.Thread(target=_end_when_told, args=(talk, stop, ended), daemon=True).start()
    try:
        talk.run()
    finally:
        ended.set()
    return 0


def _end_when_told(talk: Stdio, stop: threading.Event, ended: threading.Event) -> None:
    stop.wait()
    while True:
        # again and again: who was told to stop while loading may not be talking yet
        talk.stop()
        if ended.wait(_POLL_SECONDS):
            return


def _wait(concert: Concert, stop: threading.Event) -> int:
    while not stop.wait(_POLL_SECONDS):
        if concert.engine.error is not None:
            raise concert.engine.error
    return 0


def _play_headless(concert: Concert, args: argparse.Namespace, stop: threading.Event) -> int:
    """Play and record for a while, without a page."""
    from kmidi_mlx.live.taking import BEGIN_SECONDS

    seconds = _SECONDS if args.seconds is None else args.seconds
    concert.engine.ready.wait()
    concert.raise_failure()
    concert.apply("transport", {"action": "play"})
    while not concert.clock.running and not stop.wait(0.01):
        concert.raise_failure()
    concert.start_take(args.out)
    began = time.monotonic() + BEGIN_SECONDS
    while not stop.wait(min(_POLL_SECONDS, max(0.0, began + seconds - time.monotonic()))):
        concert.raise_failure()
        if time.monotonic() - began >= seconds:
            break
    report = concert.stats()
    written = concert.apply("record", {"action": "stop"})
    concert.apply("transport", {"action": "stop"})
    files = [str(args.out.parent / file) for file in written["files"]]
    if args.film:
        from kmidi_mlx.live.take import Take, write_take_film

        film = args.out / "film.mp4"
        write_take_film(Take.open(args.out), film)
        files.append(str(film))
    if args.json:
        print(json.dumps({"files": files, "stats": report}))
    else:
        for file in files:
            print(f"wrote {file}")
    return 0


def _ports() -> str:
    from kmidi_mlx.live.devices import about_devices
    from kmidi_mlx.live.ports import why_no_ports

    lines = []
    found = about_devices()
    for kind, names in found.items():
        lines.append(f"{kind.replace('_', ' ')}:")
        lines += [f"  {name}" for name in names] or ["  none"]
    why = None if found["inputs"] or found["outputs"] else why_no_ports()
    return "\n".join([*lines, *([why] if why else [])])


def _complain(error: Exception) -> None:
    """What fails behind a front end must not end the music, but has to be known."""
    print(f"kmidi live: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
