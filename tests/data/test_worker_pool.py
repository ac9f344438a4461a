from __future__ import annotations

import os
import signal

import pytest

from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.errors import KmidiError


def never() -> bool:
    return False


def double(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def double_unless_thirteen(items: list[int]) -> list[int]:
    if 13 in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(items)


def fail(items: list[int]) -> list[int]:
    raise ZeroDivisionError(f"cannot {items}")


def die(items: list[int]) -> list[int]:
    os._exit(7)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_worked_on_once(workers: int) -> None:
    results = map_chunks(double, range(50), workers=workers, chunk_size=7, stop=never)
    pairs = [pair for pair in results if not isinstance(pair, Lost)]
    assert all(result == double(chunk) for chunk, result in pairs)
    assert sorted(item for chunk, _ in pairs for item in chunk) == list(range(50))


def test_the_item_that_kills_its_worker_is_named_and_nothing_else_is_lost() -> None:
    results = list(
        map_chunks(double_unless_thirteen, range(40), workers=2, chunk_size=8, stop=never)
    )
    lost = [result for result in results if isinstance(result, Lost)]
    done = sorted(item for r in results if not isinstance(r, Lost) for item in r[0])
    assert lost == [Lost(13, -signal.SIGKILL)]
    assert done == [item for item in range(40) if item != 13]


def test_workers_that_only_die_are_an_error_and_no_endless_loop() -> None:
    with pytest.raises(KmidiError, match=r"die as soon as they start \(exit code 7\)"):
        list(map_chunks(die, range(100), workers=2, chunk_size=4, stop=never))


def test_a_bug_in_the_function_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError, match="cannot"):
        list(map_chunks(fail, range(4), workers=2, chunk_size=2, stop=never))


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_begins_nothing_new_but_gives_what_is_done(workers: int) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > workers

    results = list(map_chunks(double, range(60), workers=workers, chunk_size=3, stop=stop))
    assert [result for result in results if isinstance(result, Lost)] == []
    assert len(results) == workers


def threads_and_process(items: list[int]) -> tuple[str | None, int]:
    return os.environ.get("OPENBLAS_NUM_THREADS"), os.getpid()


def test_one_thread_each_means_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    for one_thread, expected in ((False, ("7", True)), (True, ("1", False))):
        (done,) = map_chunks(
            threads_and_process, [1], workers=1, chunk_size=1, stop=lambda: False,
            one_thread=one_thread,
        )  # fmt: skip
        assert isinstance(done, tuple)
        threads, process = done[1]
        assert (threads, process == os.getpid()) == expected
    assert dict(os.environ) == before
