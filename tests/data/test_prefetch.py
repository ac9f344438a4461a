from __future__ import annotations

import threading
import time

import pytest

from kmidi_mlx.data.prefetch import Prefetcher


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_items_come_in_order_from_the_first(depth: int) -> None:
    with Prefetcher(lambda number: number * number, 3, depth) as squares:
        assert [next(squares) for _ in range(20)] == [n * n for n in range(3, 23)]
    assert threads() == 0
    assert list(squares) == []


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_an_error_surfaces_at_its_place_and_stays(depth: int) -> None:
    def make(number: int) -> float:
        return 1 / (2 - number)

    with Prefetcher(make, 0, depth) as items:
        assert [next(items), next(items)] == [0.5, 1.0]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                next(items)


def test_it_works_ahead_only_as_far_as_told() -> None:
    made = []
    with Prefetcher(made.append, 0, 3):
        deadline = time.monotonic() + 5.0
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # three in the queue and one in the hand
        assert made == [0, 1, 2, 3]


def test_closing_does_not_hang_however_full_or_empty_the_queue_is() -> None:
    for taken in (0, 1, 5):
        items = Prefetcher(lambda number: number, 0, 2)
        for _ in range(taken):
            next(items)
        items.close()
        items.close()
    assert threads() == 0
