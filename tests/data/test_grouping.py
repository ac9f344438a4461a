from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.grouping import assign_splits, connect
from kmidi_mlx.data.manifest import SPLITS

graphs = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 9), min_size=n, max_size=n),
        st.lists(st.none() | st.integers(0, 9), min_size=n, max_size=n),
        st.lists(st.none() | st.sampled_from(SPLITS), min_size=n, max_size=n),
    )
)
Graph = tuple[list[int], list[int | None], list[str | None]]


def components(songs: list[int], digests: list[int | None]) -> list[int]:
    """The slow way: spread the smallest number until nothing changes."""
    number = list(range(len(songs)))
    changed = True
    while changed:
        changed = False
        for i in range(len(songs)):
            for j in range(len(songs)):
                linked = songs[i] == songs[j] or (
                    digests[i] is not None and digests[i] == digests[j]
                )
                if linked and number[j] < number[i]:
                    number[i], changed = number[j], True
    return number


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_groups_are_the_connected_components(graph: Graph) -> None:
    songs, digests, _ = graph
    groups = connect([songs, digests]).tolist()
    slow = components(songs, digests)
    assert len(set(zip(groups, slow, strict=True))) == len(set(groups)) == len(set(slow))
    assert sorted(set(groups)) == list(range(len(set(groups))))


@settings(max_examples=60, deadline=None)
@given(graphs, st.integers(0, 5), st.floats(0, 1))
def test_no_song_and_no_duplicate_is_on_two_sides(graph: Graph, seed: int, share: float) -> None:
    songs, digests, declared = graph
    groups = connect([songs, digests])
    names = [f"song {song}" for song in songs]
    split = assign_splits(groups, declared, names, seed=seed, val_share=share)
    for labels in (songs, digests):
        for label in set(labels) - {None}:
            assert len({int(split[i]) for i, own in enumerate(labels) if own == label}) == 1
    for group in set(groups.tolist()):
        said = [SPLITS.index(d) for d, g in zip(declared, groups, strict=True) if d and g == group]
        if said:
            assert set(split[groups == group].tolist()) == {max(said)}


def test_the_draw_of_a_song_does_not_change_when_others_come() -> None:
    songs = [f"song {n}" for n in range(2000)]

    def draw(names: list[str], seed: int = 3) -> dict[str, int]:
        split = assign_splits(
            connect([names]), [None] * len(names), names, seed=seed, val_share=0.1
        )
        return dict(zip(names, split.tolist(), strict=True))

    every = draw(songs)
    assert draw(songs[::-3]).items() <= every.items()
    assert draw(songs, seed=4) != every
    assert 0.07 < np.mean([side == SPLITS.index("val") for side in every.values()]) < 0.13


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 999), min_size=1, max_size=12), st.integers(0, 5), st.floats(0.01, 0.99)
)
def test_of_two_songs_none_of_both_sides_is_empty(
    numbers: set[int], seed: int, share: float
) -> None:
    songs = [f"song {number}" for number in sorted(numbers)]

    def val(names: list[str], declared: str | None = None) -> set[str]:
        split = assign_splits(
            connect([names]), [declared] * len(names), names, seed=seed, val_share=share
        )
        return {name for name, side in zip(names, split, strict=True) if SPLITS[side] == "val"}

    held_out = val(songs)
    assert len(songs) == 1 or 0 < len(held_out) < len(songs)
    # what a manifest says is not touched
    assert val(songs, "train") == set()
    assert val(songs, "val") == set(songs)
    # songs of train leave, and what is held out stays
    for song in set(songs) - held_out:
        rest = [name for name in songs if name != song]
        if len(rest) > 1 and len(held_out) < len(rest):
            assert val(rest) == held_out


def test_a_song_without_a_word_is_held_out_where_a_manifest_names_no_val() -> None:
    songs = ["a", "b"]
    for declared, side in (("train", "val"), ("val", "train"), ("test", "train")):
        split = assign_splits(
            connect([songs]), [declared, None], songs, seed=0, val_share=0.01
        ).tolist()
        assert SPLITS[split[1]] == side


def test_shares_of_none_and_all() -> None:
    songs = ["a", "b", "c"]
    groups = connect([songs])
    for share, side in ((0.0, "train"), (1.0, "val")):
        split = assign_splits(groups, [None] * 3, songs, seed=0, val_share=share)
        assert split.tolist() == [SPLITS.index(side)] * 3
