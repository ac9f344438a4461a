from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.suffix_array import SuffixArray


def slow_length(parts: list[list[int]], query: list[int], at: int) -> int:
    """The longest beginning of query[at:] that stands in a part, by looking everywhere."""
    longest = 0
    for part in parts:
        for place in range(len(part)):
            length = 0
            while (
                at + length < len(query)
                and place + length < len(part)
                and query[at + length] == part[place + length]
            ):
                length += 1
            longest = max(longest, length)
    return longest


SYMBOLS = st.lists(st.integers(0, 3), max_size=60)


@settings(max_examples=60)
@given(st.lists(SYMBOLS, min_size=1, max_size=4), SYMBOLS)
def test_matches_are_those_of_looking_everywhere(parts: list[list[int]], query: list[int]) -> None:
    index = SuffixArray([np.array(part, np.int64) for part in parts])
    found = index.longest_matches(np.array(query, np.int64))
    expected = [slow_length(parts, query, at) for at in range(len(query))]
    assert found.length.tolist() == expected
    for at, (length, part) in enumerate(zip(found.length, found.part, strict=True)):
        assert (part >= 0) == (length > 0)
        if length:
            assert slow_length([parts[part]], query, at) == length


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(300, 3000), st.sampled_from([2, 388, 4590, 60_000]))
def test_long_repeats_and_large_alphabets_are_sorted_too(seed: int, count: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    motif = rng.integers(0, kinds, 40)
    text = np.concatenate([motif] * (count // 40) + [rng.integers(0, kinds, 50)])
    planted = text[10 : count - 30]
    query = np.concatenate((rng.integers(0, kinds, 3), planted, [kinds + 5]))
    found = SuffixArray([text, motif]).longest_matches(query)
    assert found.length[3] >= len(planted)
    assert found.length[3] == slow_length([text.tolist()], query.tolist(), 3)
    assert found.length[-1] == 0


def test_no_match_goes_over_the_end_of_a_part() -> None:
    index = SuffixArray([np.array([1, 2, 3]), np.array([4, 5])])
    found = index.longest_matches(np.array([2, 3, 4, 5]))
    assert found.length.tolist() == [2, 1, 2, 1]
    assert found.part.tolist() == [0, 0, 1, 1]


def test_matches_are_followed_to_the_depth() -> None:
    text = np.zeros(200, np.int64)
    assert SuffixArray([text], depth=48).longest_matches(text).length.max() == 48
    assert SuffixArray([text]).longest_matches(text).length.tolist() == list(range(200, 0, -1))


def test_what_is_nowhere_matches_nothing() -> None:
    index = SuffixArray([np.array([0, 7])])
    assert index.longest_matches(np.array([-1, 8, 9, 65_000])).length.tolist() == [0] * 4
    assert not len(index.longest_matches(np.zeros(0, np.int64)).length)
