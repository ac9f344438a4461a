"""The processes that train one run together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kmidi_mlx.errors import KmidiError

Value = TypeVar("Value")


class SaidByLeaderError(KmidiError):
    """What the leading process complains about too, so that nobody else needs to."""


class Processes:
    """A process that trains alone; a framework that can train in several overrides the methods.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, judges and reports."""
        return self.rank == 0

    def share(self, number: int) -> int:
        """Return the index, over all processes, of this process's micro-batch `number`.

        `count` processes that accumulate over `n` micro-batches see in every step those that one
        process would see that accumulates over `count * n`.
        """
        return number * self.count + self.rank

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values, the same one in all."""
        return value

    def told(self, make: Callable[[], Value]) -> Value:
        """Return what the leading process makes, in all; the others do not call `make`.

        Raises:
            KmidiError: in all processes, where `make` raised it.
        """
        return make()


ALONE = Processes()
