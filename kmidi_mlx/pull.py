"""`python -m kmidi_mlx.pull`: get a shared checkpoint from the Hugging Face hub."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.hub import Pulled, check_repository, pull
from kmidi_mlx.model_card import licence_on, usage_of
from kmidi_mlx.sharing import CARD, Part
from kmidi_mlx.shipped import USUAL_FOLDER
from kmidi_mlx.strict_yaml import shown


def main(argv: list[str]) -> int:
    """Parse the flags, download and check, print what came and how to use it."""
    parser = CommandParser(
        prog="kmidi pull",
        description="Get a shared checkpoint from the Hugging Face hub. Only safetensors and text "
        "are taken, and nothing takes its place before it was read and checked.",
    )
    parser.add_argument("repository", metavar="USER/NAME", help="repository")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to make (default: checkpoints/NAME)"
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit (default: the newest)"
    )
    parser.add_argument("--force", action="store_true", help="replace DIR where it is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    repository = check_repository(args.repository)
    out = args.out or USUAL_FOLDER / repository.partition("/")[2]
    pulled = pull(repository, out, args.revision, args.force, _check_network)
    card = out / CARD
    licence = licence_on(card.read_text("utf-8", "replace")) if card.exists() else None
    _print(repository, out, pulled, licence, args.json)
    return 0


def _check_network(parts: list[Part]) -> None:
    """Hold that the arrays are those of the network, where MLX is there to tell."""
    from kmidi_mlx.checkpoint_model import built, open_weights
    from kmidi_mlx.convert import find_network

    for part in parts:
        if part.name:
            continue  # what it fits is known with its base
        try:
            network = find_network("kmidi_mlx", part.config)
        except KmidiError:
            return
        from mlx.utils import tree_flatten

        model = built(lambda: network(part.config.model), part.path)  # noqa: B023 - called at once
        shapes = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
        open_weights(part.path, type(part.config)).check(shapes)


def _print(repository: str, out: Path, pulled: Pulled, licence: str | None, as_json: bool) -> None:
    synthetic = any(part.metadata.get("synthetic") for part in pulled.parts)
    if as_json:
        result = {
            "repository": repository,
            "revision": pulled.revision,
            "out": str(out),
            "licence": licence,
            "synthetic": synthetic,
            "parts": [part.name or part.config.name for part in pulled.parts],
            "left_out": pulled.left_out,
        }
        print(json.dumps(result))
        return
    print(f"pulled {repository} at {pulled.revision[:12]} into {out}")
    for part in pulled.parts:
        kind = f"adapter {part.name} for {part.config.name}" if part.name else part.config.name
        data = ", ".join(shown(item) for item in part.licences) or "unknown"
        print(f"{kind}: {part.parameters:,} parameters; licences of its data: {data}")
    print(f"licence: {shown(licence) if licence else 'not stated'}")
    if synthetic:
        print("note: trained on synthetic practice music, not on real music")
    if pulled.left_out:
        names = ", ".join(shown(name) for name in pulled.left_out[:5])
        more = f" and {len(pulled.left_out) - 5} more" if len(pulled.left_out) > 5 else ""
        print(f"left out, as kmidi takes only safetensors and text: {names}{more}")
    for line in usage_of(pulled.parts, shlex.quote(str(out))):
        print(f"use it: {line}")


if __name__ == "__main__":
    sys.exit(run(main))
