"""Several processes that train one run, as `torchrun` starts them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import ALONE, Processes, SaidByLeaderError

Value = TypeVar("Value")

# evaluations and samples are made by one process while the others wait
_PATIENCE = timedelta(hours=1)
_MEETING = timedelta(minutes=10)
_POLL_SECONDS = 0.02
# what gloo and NCCL say when a process at the other end is gone
_GONE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


class Group(Processes):
    """The processes of `torch.distributed`; made by `joined`.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.device = device
        # what is agreed on the host waits for no GPU
        on_host = device.type == "cpu"
        self._control = None if on_host else dist.new_group(backend="gloo", timeout=_PATIENCE)

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values, the same one in all."""
        told = torch.tensor(value)
        with partners():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._control)
        return int(told.item())

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
        parcel: list[Any] = [made, complaint and str(complaint)]
        with partners():
            dist.broadcast_object_list(parcel, src=0, group=self._control)
        if parcel[1] is not None:
            raise complaint or SaidByLeaderError(parcel[1])
        return parcel[0]

    def add_up(self, totals: Tensor) -> None:
        """Replace a tensor on the device by its sum over the processes."""
        with partners():
            dist.all_reduce(totals)


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launch_name() -> str:
    """What tells one `torchrun` from others, also when it starts processes anew; empty: none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return name if name != "none" else f"child of {os.getppid()}"


def was_restarted() -> bool:
    """Whether `torchrun` started this process anew because one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that `torchrun` started; alone without it.

    Args:
        device: of this process.

    Yields:
        A `Group`, or `ALONE`.

    Raises:
        KmidiError: when the others do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=_MEETING))
        store = _unused_part(store, rank, count)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE
        )
    except (ValueError, RuntimeError, TimeoutError) as error:
        sentence = " ".join(str(error).split()).rstrip(".")
        raise KmidiError(f"the processes of this run could not meet: {sentence}.") from error
    try:
        yield Group(device)
    finally:
        # what is left of it aborts the interpreter's end where the others are gone
        dist.destroy_process_group()


def _unused_part(store: Any, rank: int, count: int) -> Any:
    """Return a part of a store that no earlier start of these processes has written to.

    `torchrun` may keep its store when it starts processes anew, and in it the addresses of the dead
    (PyTorch 2.13 does). So the leader names a part after a number nobody has used, and the others
    learn it under names of their own choice, which nobody can have answered before.

    Raises:
        TimeoutError: when not all of them come.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", own)
        part = store.get(f"answer/{own}").decode()
        store.set(f"{part}/met/{rank}", b"")
        return dist.PrefixStore(part, store)
    missing = set(range(1, count))
    until = time.monotonic() + _MEETING.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"here/{other}"]):
                # maybe of a process that is gone; then nobody reads the answer
                store.set(f"answer/{store.get(f'here/{other}').decode()}", own)
            if store.check([f"{own}/met/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > until:
            raise TimeoutError(f"{len(missing)} of {count} did not come")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(own, store)


@contextmanager
def partners() -> Iterator[None]:
    """Tell the end of another process as such; nothing is changed where this one is alone.

    Raises:
        KmidiError: when the block fails because another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not dist.is_initialized() or not any(words in text for words in _GONE):
            raise
        raise KmidiError(
            "another process of this run has ended; what it said tells why, and --resume goes on."
        ) from error
