"""The page that a shared checkpoint shows: what it is, what it learnt from, how to use it.

Everything on it comes from the metadata of the files; what they do not say is called unknown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from kmidi_mlx import __version__
from kmidi_mlx.sharing import Part

__all__ = ["MARK", "card_of", "licence_of", "licence_on"]

#: Tells a card of ours from one that somebody wrote.
MARK = "<!-- written by kmidi push -->"

#: What the number `metric` of a checkpoint is.
UNITS = {
    "midi_generator": "nats per event on held-out music",
    "spectocloud": "loss per cloud on held-out songs",
    "emotion_recognizer": "loss per clip on held-out recordings",
}
_PURPOSES = {
    "midi_generator": "writes piano music that follows a feeling, as MIDI",
    "spectocloud": "draws music and feeling as a moving cloud of light",
    "emotion_recognizer": "hears emotion in recordings",
}
_TAGS = {
    "midi_generator": ["music-generation", "midi", "piano", "emotion"],
    "spectocloud": ["music-visualization", "point-cloud", "emotion"],
    "emotion_recognizer": ["music-emotion-recognition", "audio"],
}
_LIMITS = {
    "midi_generator": (
        "It knows the kind of music it learnt from and little else. Valence and arousal are what "
        "a label model reads out of notes, so they steer by tempo, mode, loudness and register, "
        "and are no judgement of how listeners feel. It may repeat passages of its data."
    ),
    "spectocloud": (
        "It imitates the picture that a deterministic engine draws, and is no better than it. "
        "Sounds unlike those it was shown may give clouds that mean little."
    ),
    "emotion_recognizer": (
        "Its labels are those of its recordings, in number and in bias. What people feel when they "
        "hear music differs; do not use it to judge people."
    ),
}
# licences that the hub knows by these names
_KNOWN = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "unknown", "unlicense",
}  # fmt: skip


def licence_of(parts: Sequence[Part], given: str | None) -> str | None:
    """Return the licence of what is shared: the one given, else that of all data if it is one."""
    if given is not None:
        return given
    found = {licence for part in parts for licence in part.licences}
    return found.pop() if len(found) == 1 else None


def licence_on(card: str) -> str | None:
    """Return the licence that a card states at its top; None: it states none."""
    lines = card[:20_000].splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    stated = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        found = re.fullmatch(r"(license|license_name):\s*(.{1,200}?)\s*", line)
        if found:
            stated[found[1]] = found[2].strip("'\"")
    licence = stated.get("license")
    return stated.get("license_name", licence) if licence == "other" else licence


def card_of(parts: Sequence[Part], repository: str, licence: str | None) -> str:
    """Write the card.

    Args:
        parts: what is shared, the model first.
        repository: `USER/NAME`.
        licence: of the weights; None: not stated.
    """
    first = parts[0]
    model = first.config.name
    name = repository.partition("/")[2]
    lines = [
        "---",
        _front_matter(parts, licence).rstrip(),
        "---",
        MARK,
        "",
        f"# {_plain(name)}",
        "",
        f"{_kind(first)} of kmidi: {_PURPOSES[model]}.",
    ]
    practised = [part for part in parts if part.metadata.get("synthetic")]
    if practised:
        who = ""
        if len(practised) < len(parts):
            names = [
                f"adapter `{_plain(part.name)}`" if part.name else "model" for part in practised
            ]
            who = f" (the {' and the '.join(names)})"
        lines += [
            "",
            f"**Trained on synthetic practice music, not on real music**{who}: it shows that "
            "everything works, not what the model can do.",
        ]
    for part in parts:
        title = f"Adapter `{_plain(part.name)}`" if part.name else "Model"
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {_plain(value)} |" for key, value in _facts(part)]
    lines += ["", "## Use", "", "```bash", *_commands(parts, repository, name), "```"]
    lines += ["", "## Limits", "", _LIMITS[model]]
    terms = _plain(licence) if licence else "not stated; ask the owner of this repository"
    lines += ["", "## Licence", "", f"Weights: {terms}. Data: as above.", ""]
    return "\n".join(lines)


def _front_matter(parts: Sequence[Part], licence: str | None) -> str:
    model = parts[0].config.name
    name = re.sub(r"[^a-z0-9.]+", "-", (licence or "unknown").lower()).strip("-")
    values: dict[str, Any] = {"license": name if name in _KNOWN else "other"}
    if values["license"] == "other":
        values["license_name"] = name
    values["library_name"] = "mlx"
    values["tags"] = ["kmidi", "safetensors", *_TAGS[model]]
    if not any(part.name == "" for part in parts):
        values["tags"].append("adapter")
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _kind(part: Part) -> str:
    return f"An adapter for a `{part.config.name}`" if part.name else f"A `{part.config.name}`"


def _facts(part: Part) -> list[tuple[str, str]]:
    known = part.metadata
    metric = known.get("metric")
    score = "unknown"
    if isinstance(metric, int | float):
        score = f"{metric:.4f} {UNITS[part.config.name]}"
    quantised = known.get("quantization")
    base = known.get("base")
    facts = [
        ("kind", part.config.name),
        ("parameters", f"{part.parameters:,}"),
        (
            "optimiser steps",
            f"{known['step']:,}" if isinstance(known.get("step"), int) else "unknown",
        ),
        ("validation", score),
        ("licences of the data", ", ".join(part.licences) or "unknown"),
        ("synthetic data", "yes" if known.get("synthetic") else "no"),
        ("where labels came from", str(known.get("data_labels") or "unknown")),
        ("commit", str(known.get("commit") or "unknown")),
        ("format version", str(known.get("format_version", 1))),
    ]
    if isinstance(quantised, dict):
        facts.insert(2, ("quantised layers", str(len(quantised.get("layers") or ()))))
    if isinstance(base, dict):
        facts.insert(1, ("trained over", f"{base.get('name')} (digest {base.get('digest')})"))
    return facts


def _commands(parts: Sequence[Part], repository: str, name: str) -> list[str]:
    pip = f"pip install 'kmidi-mlx[hub]'   # {__version__} wrote this page"
    pull = f"kmidi pull {repository} --out {name}"
    return [pip, pull, *usage_of(parts, name)]


def usage_of(parts: Sequence[Part], folder: str) -> list[str]:
    """Return the commands that use what is in a folder.

    Args:
        parts: what it holds.
        folder: its name, fit for a shell.
    """
    model = parts[0].config.name
    base = folder if not parts[0].name else "BASE"
    if model == "midi_generator":
        write = f"kmidi generate --checkpoint {base}"
        ending = "--emotion happy --out happy.mid"
        if parts[0].name:
            return [f"{write} --adapter {folder}/adapters/{parts[0].name} {ending}"]
        own = [f"{write} --adapter {part.name} {ending}" for part in parts[1:]]
        return [f"{write} {ending}", *own, f"kmidi live --generator {base}"]
    if model == "spectocloud":
        if parts[0].name:
            return [
                f"kmidi live --spectocloud BASE --cloud-adapter {folder}/adapters/{parts[0].name}"
            ]
        return [
            f"kmidi picture SONG.mid --checkpoint {base} --out cloud.png",
            f"kmidi live --spectocloud {base}",
        ]
    return [
        f"kmidi live --recognizer {base} --listen input --feel",
        f"kmidi evaluate --model emotion_recognizer --checkpoint {base} "
        "--audio-manifest MANIFEST.jsonl",
    ]


def _plain(text: str) -> str:
    """Return text as one line that Markdown and HTML leave alone."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|!#])", r"\\\1", line)
