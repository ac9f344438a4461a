"""The ladder: what gives way, in which order, and that it neither swings nor stays down."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.quality import (
    LADDER,
    REPLACING_LADDER,
    Costs,
    Quality,
    QualityControl,
    Wishes,
)

POINTS = (200, 600, 1200, 2000, 3000)
LADDERS = (LADDER, REPLACING_LADDER)


def load_of(costs: Costs, step: Quality, wishes: Wishes) -> float:
    return costs.music_load(step, wishes) + costs.cloud_load(step, wishes, 60)


def costs_of(cloud: float = 0.004, token: float = 0.002, tokens: float = 30.0) -> Costs:
    """A network's cloud by points, an engine of a tenth, guidance that doubles a token."""
    network = {points: cloud * (0.5 + points / 2400) for points in POINTS}
    engine = {points: seconds / 10 for points, seconds in network.items()}
    return Costs({True: network, False: engine}, token, 2 * token, tokens)


def settle(control: QualityControl, costs: Costs, wishes: Wishes, begun: float = 0.0) -> float:
    """Look at constant costs for a minute; return the moment after it."""
    for second in range(60):
        control.update(begun + second, costs, wishes, short=False)
    return begun + 60.0


@pytest.mark.parametrize("ladder", LADDERS)
def test_the_order_of_the_ladder(ladder: tuple[Quality, ...]) -> None:
    assert ladder[0] == Quality(1, 3000, True, True, 1.0, 1.0, "everything")
    assert len({step.text for step in ladder}) == len(ladder)
    for better, worse in itertools.pairwise(ladder):
        assert dataclasses.replace(better, text=worse.text) != worse, "a step that changes nothing"
        # what has given way does not come back farther down
        assert better.lookahead <= worse.lookahead
        assert better.pace >= worse.pace
        assert better.guidance or not worse.guidance
        assert better.network or not worse.network
        if better.network == worse.network:
            assert (better.every, -better.points) <= (worse.every, -worse.points)
    # first clouds, then guidance, then the music is written farther ahead, at last it slows down
    assert all(step.every >= 4 and step.points <= 600 for step in ladder if not step.guidance)
    assert all(not step.guidance for step in ladder if step.lookahead > 1.0)
    assert all(step.lookahead == 2.0 for step in ladder if step.pace < 1.0)
    assert 0.5 < ladder[-1].pace < 1.0


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(3000, guided=True),
        Wishes(200, network=False),
        Wishes(1200, network=False, guided=True),
    ],
)
def test_each_step_costs_no_more_than_the_one_before(wishes: Wishes) -> None:
    costs = costs_of()
    loads = [load_of(costs, step, wishes) for step in wishes.ladder]
    assert loads == sorted(loads, reverse=True)


def test_the_ladder_with_the_engine_is_for_who_allows_it() -> None:
    assert Wishes(1200, replaceable=True).ladder is REPLACING_LADDER
    assert Wishes(1200, replaceable=False).ladder is LADDER
    assert Wishes(1200, network=False, replaceable=True).ladder is LADDER


def test_a_fast_machine_keeps_everything() -> None:
    control = QualityControl(60)
    settle(control, costs_of(), Wishes(1200, guided=True))
    assert control.level == 0
    assert control.quality == LADDER[0]


def test_what_is_needed_gives_way_at_once_and_no_more() -> None:
    for cloud, most in ((0.02, 4), (0.05, 6), (10.0, len(LADDER))):
        control, wishes, costs = QualityControl(60), Wishes(1200), costs_of(cloud)
        assert control.update(0.0, costs, wishes, short=False)
        assert 0 < control.level <= most

        def fits(step: Quality, costs: Costs = costs, wishes: Wishes = wishes) -> bool:
            return load_of(costs, step, wishes) <= 0.9 and costs.cloud_load(step, wishes, 60) <= 0.5

        assert fits(control.quality) or control.quality.every == LADDER[-1].every
        assert not any(map(fits, LADDER[: control.level]))


positive = st.floats(1e-5, 1.0)
any_costs = st.builds(costs_of, positive, positive, st.floats(0.0, 200.0))
any_wishes = st.builds(Wishes, st.sampled_from(POINTS), st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(any_costs, any_wishes, st.integers(1, 240))
def test_constant_costs_change_it_once_at_the_most(
    costs: Costs, wishes: Wishes, frames: int
) -> None:
    control = QualityControl(frames)
    control.update(0.0, costs, wishes, short=False)
    level = control.level
    for second in range(1, 90):
        assert not control.update(second, costs, wishes, short=False)
    assert control.level == level
    assert control.quality is wishes.ladder[level]


@settings(max_examples=60, deadline=None)
@given(any_costs, any_wishes, st.floats(1.0, 5.0))
def test_dearer_work_is_never_better_quality(costs: Costs, wishes: Wishes, factor: float) -> None:
    dearer = Costs(
        {n: {p: s * factor for p, s in by.items()} for n, by in costs.cloud_seconds.items()},
        costs.plain_seconds * factor,
        costs.guided_seconds * factor,
        costs.tokens_per_second * factor,
        costs.frame_seconds * factor,
    )
    levels = []
    for these in (costs, dearer):
        control = QualityControl(60)
        control.update(0.0, these, wishes, short=False)
        levels.append(control.level)
    assert levels[0] <= levels[1]


@settings(max_examples=40, deadline=None)
@given(any_costs, any_wishes, st.lists(st.booleans(), max_size=40))
def test_it_recovers_whatever_happened_before(
    costs: Costs, wishes: Wishes, shortages: list[bool]
) -> None:
    control = QualityControl(60)
    now = 0.0
    for short in shortages:
        control.update(now, costs, wishes, short)
        now += 1.0
    settle(control, costs, wishes, now)
    fresh = QualityControl(60)
    fresh.update(0.0, costs, wishes, short=False)
    assert control.level == fresh.level


def test_better_is_taken_only_when_it_has_held_for_a_while() -> None:
    control, wishes = QualityControl(60), Wishes(1200)
    control.update(0.0, costs_of(0.05), wishes, short=False)
    down = control.level
    for second in range(1, 5):
        assert not control.update(second, costs_of(), wishes, short=False)
    # once more too dear: the waiting begins anew
    control.update(5.0, costs_of(0.05), wishes, short=False)
    for second in range(6, 11):
        assert not control.update(second, costs_of(), wishes, short=False)
        assert control.level == down
    assert control.update(11.0, costs_of(), wishes, short=False)
    assert control.level == 0


def test_a_shortage_takes_steps_that_costs_do_not_explain() -> None:
    control, wishes, costs = QualityControl(60), Wishes(1200), costs_of()
    levels = []
    for second in range(20):
        control.update(second, costs, wishes, short=True)
        levels.append(control.level)
    # one step, then time to see whether it helps
    assert levels[:10] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    for second in range(20, 39):
        assert not control.update(second, costs, wishes, short=False), "too early"
    for second in range(39, 46):
        control.update(second, costs, wishes, short=False)
    assert control.level == 0


def test_a_shortage_without_end_stays_at_the_last_step() -> None:
    for wishes in (Wishes(1200), Wishes(1200, replaceable=True)):
        control = QualityControl(60)
        for second in range(200):
            control.update(second, costs_of(), wishes, short=True)
        assert control.quality == wishes.ladder[-1]
        # a shorter ladder from one moment to the next
        control.update(201.0, costs_of(), Wishes(1200), short=True)
        assert control.quality in LADDER


def test_guidance_that_nobody_asked_for_need_not_give_way() -> None:
    costs = costs_of(cloud=0.001, token=0.018)
    for guided, kept in ((True, False), (False, True)):
        control = QualityControl(60)
        control.update(0.0, costs, Wishes(1200, guided=guided), short=False)
        assert control.quality.guidance == kept


def test_a_machine_too_slow_for_the_music_plays_it_as_fast_as_it_can() -> None:
    # 0.96 of the time for tokens alone, at the tempo that is asked for
    for tokens, pace in ((30.0, 1.0), (48.0, 0.85), (60.0, 0.7), (200.0, 0.7)):
        costs = costs_of(cloud=1e-5, token=0.02, tokens=tokens)
        control = QualityControl(60)
        control.update(0.0, costs, Wishes(1200), short=False)
        assert control.quality.pace == pace
        assert costs.music_load(control.quality, Wishes(1200)) == pytest.approx(
            pace * tokens * 0.02
        )


def test_a_busy_moment_does_not_cost_the_dear_steps_for_ever() -> None:
    """Clouds that are no longer drawn are never measured again; they have to recover too."""
    costs, wishes, control = costs_of(), Wishes(3000, guided=True), QualityControl(60)
    warm = costs_of()

    def second(slowness: float, now: float) -> None:
        points = min(wishes.points, control.quality.points)
        for _ in range(60 // control.quality.every):
            costs.drew(True, points, slowness * warm.cloud_seconds[True][points])
        for _ in range(30):
            guided = control.quality.guidance
            costs.wrote(guided, slowness * (warm.guided_seconds if guided else warm.plain_seconds))
        control.update(now, costs, wishes, short=False)

    for now in range(60):
        second(30.0, now)
    assert control.quality.points < 3000
    assert not control.quality.guidance
    for now in range(60, 160):
        second(1.0, now)
    assert control.quality == LADDER[0]
    assert costs.cloud_seconds[True][3000] == pytest.approx(warm.cloud_seconds[True][3000], rel=0.1)


def test_one_slow_cloud_says_little() -> None:
    costs = costs_of()
    before = costs.cloud_seconds[True][1200]
    costs.drew(True, 1200, 10.0)
    assert costs.cloud_seconds[True][1200] <= 1.16 * before
    costs.wrote(False, math.inf)
    assert costs.plain_seconds <= 1.16 * 0.002


def test_no_measurement_yet_is_no_cost() -> None:
    assert load_of(Costs(), LADDER[0], Wishes(1200)) < 0.1
    control = QualityControl(60)
    assert not control.update(0.0, Costs(), Wishes(1200), short=False)


def test_where_nothing_is_enough_what_saves_little_is_not_given_up() -> None:
    """Clouds alone are too dear: slower music would not help."""
    costs = costs_of(cloud=10.0, tokens=0.01)
    control = QualityControl(60)
    control.update(0.0, costs, Wishes(1200), short=False)
    assert control.quality.every == 30
    assert control.quality.pace == 1.0


@settings(max_examples=60, deadline=None)
@given(positive, positive, positive, st.floats(0.0, 200.0), any_wishes, st.floats(1e-3, 2.0))
def test_there_is_always_a_step(
    network: float, engine: float, token: float, tokens: float, wishes: Wishes, most: float
) -> None:
    """Also where the engine is dearer than the network, and nothing is allowed to cost anything."""
    costs = costs_of(network, token, tokens)
    costs.cloud_seconds[False] = dict.fromkeys(POINTS, engine)
    control = QualityControl(60, most_drawing=most)
    control.update(0.0, costs, wishes, short=False)
    assert control.quality in wishes.ladder
