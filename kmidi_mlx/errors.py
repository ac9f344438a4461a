"""The one error class whose sentence is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

# of a word that tells what was meant, and of names that it may have meant
_LEAST_BEGINNING, _MOST_BEGUN = 3, 3


class KmidiError(Exception):
    """Wrong use or wrong input.

    The message is one sentence that says what is wrong, where (file, line, field) and what to do.
    Commands print it on stderr and exit with status 2; anything else that escapes is a bug.
    """


def nearest(word: str, valid: Iterable[str], otherwise: str = "") -> str:
    """End a complaint about an unknown word: with the one that was meant, where one is near.

    Where none is, those count as meant that begin with the word, or have it behind a dot.

    Args:
        word: that is unknown.
        valid: the words there are.
        otherwise: begins the list of them where none is near, such as `there are`; empty: no list.
    """
    names = list(valid)
    close = difflib.get_close_matches(word[:100], names, n=1)
    if not close and len(word) >= _LEAST_BEGINNING:
        begun = [name for name in names if f".{name}".find(f".{word}") >= 0]
        close = begun if len(begun) <= _MOST_BEGUN else []
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; {otherwise} {', '.join(names)}." if otherwise else ""


def system_reason(error: OSError) -> str:
    """Return what the system says of an error, without what Python adds to it."""
    return os.strerror(error.errno) if error.errno else str(error)
