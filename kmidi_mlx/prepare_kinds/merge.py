"""`kmidi prepare merge`: the shards that many jobs prepared become one data set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.data import audio_emotion_render, cloud_prepare, cloud_shards, prepare
from kmidi_mlx.data.audio_emotion_render import RenderReport
from kmidi_mlx.data.cloud_prepare import CloudReport
from kmidi_mlx.data.prepare import Report
from kmidi_mlx.data.share import Shares, open_shares
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.prepare_kinds import audio_emotion, midi, spectocloud
from kmidi_mlx.prepare_kinds.options import Work, count, shown_work

__all__ = ["add_parser"]


def add_parser(kinds: Any) -> None:
    """Add the sub-command to those of `kmidi prepare` (what `add_subparsers` returned)."""
    parser = kinds.add_parser(
        "merge",
        help="the shards of many jobs, as one data set",
        description="Make one data set of what jobs with --shard 1/N to N/N have prepared in a "
        "folder: what one job without --shard would have made there, byte for byte. The music is "
        "not needed. The shards are removed when everything is in the data set.",
    )
    parser.set_defaults(command=_merge)
    parser.add_argument("out", metavar="DIR", type=Path, help="the --out of the jobs")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _merge(arguments: Any) -> int:
    out = arguments.out.absolute()
    shares = open_shares(out)
    with shown_work("files") as work:
        report, described = _merged(shares, out, work)
    told = {"shards": len(shares.folders), **asdict(report), "out": str(out)}
    if arguments.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        files = count(len(shares.sources), "file")
        print(f"{count(len(shares.folders), 'shard')} merged: {files} in {report.seconds:.1f} s")
        print(described)
    return 0


def _merged(
    shares: Shares, out: Path, work: Work
) -> tuple[Report | CloudReport | RenderReport, str]:
    """Merge the shards of any kind; return the report, also as text."""
    kind = shares.order.kind
    if kind == prepare.KIND:
        pieces = prepare.merge_midi(shares, out)
        return pieces, midi.describe(pieces, out)
    work.on_start("merge", len(shares.sources))
    if kind == cloud_shards.KIND:
        clouds = cloud_prepare.merge_clouds(shares, out, lambda songs: work.on_progress(songs, 0))
        return clouds, spectocloud.describe(clouds, out)
    if kind == audio_emotion_render.KIND:
        recordings = audio_emotion_render.merge_audio_emotion(
            shares, out, lambda files: work.on_progress(files, 0)
        )
        return recordings, audio_emotion.describe(recordings, out)
    raise KmidiError(f"{out} has shards of {kind!r}, which this version cannot merge.")
