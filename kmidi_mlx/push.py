"""`python -m kmidi_mlx.push`: share a checkpoint on the Hugging Face hub."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.hub import check_repository, push
from kmidi_mlx.model_card import MARK, card_of, licence_of
from kmidi_mlx.sharing import CARD, Part, read_parts, stage, unfinished, unknown_licences


def main(argv: list[str]) -> int:
    """Parse the flags, write the card, upload, print where it is."""
    args = _parser().parse_args(argv)
    repository = check_repository(args.repository)
    parts = read_parts(args.source)
    notes = [
        f"note: left out: the adapter {name}, whose fine-tuning has not come to its end"
        for name in unfinished(args.source)
    ]
    unknown = unknown_licences(parts) if args.licence is None else []
    if unknown:
        missing = (
            f"nobody has said under which licences the data of {unknown[0]} were; give the licence "
            "that you share it under with --licence NAME, such as cc-by-4.0, if you may."
        )
        if not args.dry_run:
            raise KmidiError(missing)
        notes.append(f"warning: push will refuse this: {missing}")
    licence = None if unknown else licence_of(parts, args.licence)
    card = card_of(parts, repository, licence)
    with tempfile.TemporaryDirectory(prefix="kmidi-push-") as folder:
        staged = Path(folder)
        names = sorted([*stage(parts, staged), CARD])
        (staged / CARD).write_text(card, encoding="utf-8")
        sizes = {name: (staged / name).stat().st_size for name in names}
        result: dict[str, Any] = {"repository": repository, "licence": licence, "files": sizes}
        if args.dry_run:
            result["card"] = str(_keep(card, args.source))
        else:
            message = args.message or f"kmidi push {_title(parts)}"
            result["url"], result["revision"] = push(
                staged, repository, args.private, args.revision, message
            )
    for note in notes:
        print(note, file=sys.stderr)
    if args.json:
        print(json.dumps(result))
    else:
        _print(result, parts, args.dry_run)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="kmidi push",
        description="Share a checkpoint on the Hugging Face hub: its safetensors files, their "
        "configuration and a card that says what it is. Log in first: `hf auth login`.",
    )
    parser.add_argument(
        "source", type=Path, metavar="CHECKPOINT", help="checkpoint folder, or that of an adapter"
    )
    parser.add_argument("repository", metavar="USER/NAME", help="repository; made when missing")
    parser.add_argument("--private", action="store_true", help="only for you to see")
    parser.add_argument("--revision", metavar="BRANCH", help="branch (default: the main one)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument(
        "--licence", metavar="NAME", help="of the weights (default: that of the data, if it is one)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"write {CARD} into the folder and list the files, without any network",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _keep(card: str, source: Path) -> Path:
    """Write the card beside the weights, unless somebody's own text is there."""
    path = (source if source.is_dir() else source.parent) / CARD
    if path.exists() and MARK not in path.read_text("utf-8", "replace"):
        raise KmidiError(f"{path} is not a card that kmidi wrote; move it away.")
    write_bytes_atomically(path, card.encode())
    return path


def _title(parts: list[Part]) -> str:
    first = parts[0]
    return f"{first.config.name}{f' {first.name}' if first.name else ''}"


def _print(result: dict[str, Any], parts: list[Part], dry: bool) -> None:
    for name, size in result["files"].items():
        print(f"{size / 1e6:10.3f} MB  {name}")
    print(f"licence: {result['licence'] or 'not stated; --licence NAME states one'}")
    if any(part.metadata.get("synthetic") for part in parts):
        print("note: trained on synthetic practice music, and the card says so")
    if dry:
        print(f"wrote {result['card']}; nothing was sent")
    else:
        print(f"pushed: {result['url']}")
        print(f"get it: kmidi pull {result['repository']}")


if __name__ == "__main__":
    sys.exit(run(main))
