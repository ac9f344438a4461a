"""Several processes that train one run in MLX, as `mlx.launch` starts them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import ALONE, Processes, SaidByLeaderError

Value = TypeVar("Value")

# evaluations and samples are made by one process while the others wait
_PATIENCE_SECONDS = 3600.0
_MEETING_SECONDS = 600.0
# of all other exchanges, to which processes come at about the same time
_STEP_SECONDS = 600.0
_BUNDLE_BYTES = 32 << 20
# what begins a complaint of MLX about the other end
_GONE = ("[ring]", "[jaccl]", "[mpi]", "[distributed]")

# Waits with a process that MLX keeps waiting, and cannot be told to let go of.
_WATCH = """
import os, select, signal, sys
patience, parent = None, int(sys.argv[1])
while True:
    if not select.select([0], [], [], patience)[0]:
        os.write(2, sys.argv[2].format(patience).encode())
        os.kill(parent, signal.SIGKILL)
        break
    said = os.read(0, 4096)
    if not said:
        break
    patience = float(said.split()[-1]) or None
"""
_SILENT = (
    "kmidi train: another process of this run has not answered for {:.0f} s; end them all, and go "
    "on with --resume.\n"
)


class Group(Processes):
    """The processes that `mlx.launch` started; made by `joined`.

    Args:
        group: of MLX.
        watch: ends this process when the others do not answer.
    """

    def __init__(self, group: Any, watch: Watch) -> None:
        self.rank = group.rank()
        self.count = group.size()
        self._group = group
        self._watch = watch

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values, the same one in all."""
        return self._largest(value, _STEP_SECONDS)

    def told(self, make: Callable[[], Value]) -> Value:
        """Return what the leading process makes, in all; the others do not call `make`.

        Raises:
            KmidiError: in all processes, where `make` raised it.
        """
        made, complaint = None, None
        if self.leads:
            try:
                made = make()
            except KmidiError as error:
                complaint = error
        # the sentence alone: errors of special kinds cannot be packed
        parcel = pickle.dumps((made, complaint and str(complaint))) if self.leads else b""
        told, said = pickle.loads(self._sent_by_leader(parcel))
        if said is not None:
            raise complaint or SaidByLeaderError(said)
        # what the leader has made may be more than a copy of it
        return made if self.leads else told  # type: ignore[return-value]

    def add_up(self, tree: Any) -> Any:
        """Return a tree of fp32 arrays summed over the processes, the same bits in all."""
        leaves = tree_flatten(tree)
        sums: list[mx.array] = []
        for bundle in _bundles([array for _, array in leaves]):
            flat = mx.concatenate([array.reshape(-1) for array in bundle])
            with self._partners(_STEP_SECONDS):
                flat = mx.distributed.all_sum(flat, group=self._group)
                mx.eval(flat)
            ends = np.cumsum([array.size for array in bundle])[:-1].tolist()
            parts = mx.split(flat, ends)
            sums += [part.reshape(array.shape) for part, array in zip(parts, bundle, strict=True)]
        return tree_unflatten(
            [(name, total) for (name, _), total in zip(leaves, sums, strict=True)]
        )

    def _largest(self, value: int, seconds: float) -> int:
        with self._partners(seconds):
            told = mx.distributed.all_max(mx.array(value), group=self._group)
            # only here a failure raises; in reading the value it would go unnoticed
            mx.eval(told)
        return int(told.item())

    def _sent_by_leader(self, parcel: bytes) -> bytes:
        """Return the leading process's bytes, in all."""
        size = self._largest(len(parcel), _PATIENCE_SECONDS)
        received = []
        for start in range(0, size, _BUNDLE_BYTES):
            part = np.zeros(min(_BUNDLE_BYTES, size - start), np.uint8)
            if self.leads:
                part[:] = np.frombuffer(parcel, np.uint8, len(part), start)
            with self._partners(_STEP_SECONDS):
                total = mx.distributed.all_sum(mx.array(part), group=self._group)
                mx.eval(total)
            received.append(np.asarray(total).tobytes())
        return b"".join(received)

    @contextmanager
    def _partners(self, seconds: float) -> Iterator[None]:
        """Wait for the others for a time, and tell their end as such.

        Args:
            seconds: after which this process is ended.

        Raises:
            KmidiError: when the block fails because another process is gone.
        """
        try:
            with self._watch.waiting(seconds):
                yield
        except RuntimeError as error:
            if not str(error).startswith(_GONE):
                raise
            raise KmidiError(
                "another process of this run has ended; what it said tells why, and --resume "
                "goes on."
            ) from error


class Watch:
    """Ends this process when it has waited too long for others.

    MLX waits for a process that has stopped, or a machine that lost its network, for ever, and no
    thread or signal handler of Python gets a turn meanwhile. So another process keeps the time.
    """

    def __init__(self) -> None:
        words = [sys.executable, "-S", "-E", "-c", _WATCH, str(os.getpid()), _SILENT]
        # of its own group: Ctrl-C is not for it
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """End this process if the block takes longer than so many seconds."""
        self._say(seconds)
        try:
            yield
        finally:
            self._say(0.0)

    def close(self) -> None:
        """Watch no longer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _say(self, seconds: float) -> None:
        assert self._process.stdin is not None
        # training goes on if somebody has ended the watch
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"%.3f\n" % seconds)
            self._process.stdin.flush()


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes that `mlx.launch` started; alone without it.

    To be entered before signals are handled: while MLX waits for the others, no handler would run.

    Yields:
        A `Group`, or `ALONE`.

    Raises:
        KmidiError: when the others do not come.
    """
    if not _is_launched():
        yield ALONE
        return
    watch = Watch()
    try:
        yield Group(_meet(watch), watch)
    finally:
        watch.close()


def processes_here() -> int:
    """Number of processes of this run on this machine, as far as is known."""
    hosts = _ring()
    rank = int(os.environ.get("MLX_RANK", "0"))
    if rank >= len(hosts):
        return 1
    machines = [addresses[0].rpartition(":")[0] for addresses in hosts]
    return machines.count(machines[rank])


def _is_launched() -> bool:
    if "MLX_RANK" not in os.environ:
        return False
    # one process alone is launched with an empty list, at which MLX itself fails
    return "MLX_HOSTFILE" not in os.environ or len(_ring()) > 1


def _ring() -> list[list[str]]:
    """Addresses of all processes of a ring, as `mlx.launch` hands them over; empty: no ring."""
    path = os.environ.get("MLX_HOSTFILE")
    if path is None:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
        hosts: list[list[str]] = json.loads(text) if text.strip() else []
        if not isinstance(hosts, list) or any(
            not (isinstance(some, list) and some and isinstance(some[0], str)) for some in hosts
        ):
            raise TypeError("an address is missing")
    except (OSError, ValueError, TypeError) as error:
        raise KmidiError(
            f"MLX_HOSTFILE {path} cannot be used: {error}; it is a list of lists of addresses, one "
            "a process, which mlx.launch writes."
        ) from error
    return hosts


def _meet(watch: Watch) -> Any:
    """Return MLX's group of all processes."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        with watch.waiting(_MEETING_SECONDS):
            return mx.distributed.init(strict=True)
    except RuntimeError as error:
        sentence = " ".join(str(error).split()).rstrip(".")
        raise KmidiError(f"the processes of this run could not meet: {sentence}.") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _bundles(arrays: list[mx.array]) -> Iterator[list[mx.array]]:
    """Divide arrays, in their order, into lists of at most so many bytes or one array."""
    bundle: list[mx.array] = []
    for array in arrays:
        if bundle and sum(each.nbytes for each in bundle) + array.nbytes > _BUNDLE_BYTES:
            yield bundle
            bundle = []
        bundle.append(array)
    if bundle:
        yield bundle
