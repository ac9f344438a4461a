"""YAML read as a tree of nodes that know their line, without the surprises of YAML.

The core schema of YAML 1.2 decides what is a number (`1e-4` and `.5` are; `1:30`, `0o17`, `010`,
`1_000` and `.inf` are text) and what is a truth value (`true` and `false`; `yes`, `no`, `on` and
`off` are text).
Anchors, aliases, tags, several documents and deep nesting have no place in a configuration and are
refused, which also keeps out documents that unfold to gigabytes.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kmidi_mlx.errors import KmidiError

__all__ = [
    "BOOL",
    "FLOAT",
    "INT",
    "MAX_FILE_BYTES",
    "NULL",
    "Source",
    "compose",
    "read_text",
    "shown",
]

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 6
MAX_NODES = 10_000

BOOL = "tag:yaml.org,2002:bool"
FLOAT = "tag:yaml.org,2002:float"
INT = "tag:yaml.org,2002:int"
NULL = "tag:yaml.org,2002:null"

_WHOLE = r"(?:0|[1-9][0-9]*)"
_SCALARS = (
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT, rf"[-+]?{_WHOLE}", list("-+0123456789")),
    (
        FLOAT,
        rf"[-+]?(?:{_WHOLE}?\.[0-9]+|{_WHOLE}\.?)(?:[eE][-+]?[0-9]+)?",
        list("-+0123456789."),
    ),
)


@dataclass(frozen=True)
class Source:
    """Where a text came from, for messages.

    Attributes:
        name: a file's path or a command line flag with its value.
        numbered: whether a line number helps to find the place.
    """

    name: str
    numbered: bool = True

    def at(self, line: int) -> str:
        """Return the place of the 0-based `line` in words."""
        return f"{self.name}, line {line + 1}" if self.numbered else self.name


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the core schema and without anchors, tags and depth."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to say it

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text)
        self.source = source
        self.depth = 0
        self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        place = self.source.at(event.start_mark.line)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise KmidiError(f"{place}: anchors and aliases are not allowed; write the value out.")
        if event.tag is not None:
            raise KmidiError(f"{place}: the tag {shown(event.tag)} is not allowed; leave it out.")
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise KmidiError(f"{place}: nested too deeply; options have the form section: option.")
        if self.nodes > MAX_NODES:
            raise KmidiError(f"{place}: more than {MAX_NODES} values; this is no configuration.")
        node: yaml.Node | None = super().compose_node(parent, index)  # type: ignore[arg-type]
        self.depth -= 1
        return node


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def compose(text: str, source: Source) -> yaml.Node | None:
    """Parse one YAML document into its node tree.

    Args:
        text: the document.
        source: where it came from, for messages.

    Returns:
        The root node (its `tag` is one of this module's, or YAML's str, seq or map), or None for
        an empty document.

    Raises:
        KmidiError: names the place of whatever is not plain, small, well-formed YAML.
    """
    try:
        loader = _Loader(text, source)
    except yaml.reader.ReaderError as error:
        place = source.at(text.count("\n", 0, error.position))
        code = int(error.character)
        raise KmidiError(f"{place}: the character U+{code:04X} is not text.") from error
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = source.at(mark.line if mark else 0)
        raise KmidiError(f"{place}: {_in_words(error)}") from error
    except ValueError as error:
        # PyYAML lets a bad number through: "\U00110000", %YAML with thousands of digits
        raise KmidiError(f"{source.at(loader.line)}: not valid YAML: {error}.") from error
    finally:
        loader.dispose()
    return node


def _in_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "not valid YAML"
    if "'\\t'" in problem:
        return "a tab is used for indentation; use spaces."
    if "expected a single document" in str(error.context):
        return "a second document starts here; keep one document in a file."
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML{context}: {' '.join(problem.split())}."


def read_text(path: Path) -> str:
    """Read a small UTF-8 file (a byte order mark at its start is dropped).

    Args:
        path: a file of at most MAX_FILE_BYTES bytes.

    Raises:
        KmidiError: if it cannot be read, is too large, or is not UTF-8 (names the line).
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError as error:
        raise KmidiError(f"{path} is a folder; give a YAML file.") from error
    except FileNotFoundError as error:
        raise KmidiError(f"{path} does not exist; give a YAML file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KmidiError(f"cannot read {shown(str(path))}: {reason}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise KmidiError(f"{path} is larger than 1 MiB; this is no configuration.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start)
        raise KmidiError(f"{path}, line {line + 1}: not UTF-8 text; save it as UTF-8.") from error


def shown(text: str, limit: int = 60) -> str:
    """Return `text` fit for a one-line message: escaped where unprintable, cut where long."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char if unicodedata.category(char)[0] not in "CZ" or char == " " else ascii(char)[1:-1]
        for char in cut
    )
