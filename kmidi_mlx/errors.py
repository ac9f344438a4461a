"""The one error class whose sentence is meant for the person at the keyboard."""

from __future__ import annotations


class KmidiError(Exception):
    """Wrong use or wrong input.

    The message is one sentence that says what is wrong, where (file, line, field) and what to do.
    Commands print it on stderr and exit with status 2; anything else that escapes is a bug.
    """
