"""Off-policy estimates: by hand, unbiased over simulated logs, and with intervals that hold the truth."""

import numpy as np
import pytest

from experiments.statistics.off_policy import (
    DOUBLY_ROBUST,
    IPS,
    MODEL,
    SNIPS,
    Decisions,
    PolicyValue,
    Target,
    policy_value,
    relative_lift,
)

#: Users of a simulated log, decisions of each, actions.
USERS, EACH, ACTIONS = 300, 3, 4
TARGET = np.array([0.7, 0.1, 0.1, 0.1])
LOGGED = np.array([0.1, 0.2, 0.3, 0.4])
TRUE = np.array([0.5, 0.3, 0.1, 0.2])


def draw(
    rng: np.random.Generator, model: np.ndarray, *, users: int = USERS
) -> tuple[Decisions, Target, float]:
    """A log of users whose rewards have a level of their own, and the target's true value in it."""
    count = users * EACH
    group_N = np.repeat(np.arange(users), EACH)
    level_N = rng.uniform(0.5, 1.5, users)[group_N]
    action_N = rng.choice(ACTIONS, count, p=LOGGED)
    logged = Decisions(
        reward_N=(rng.random(count) < TRUE[action_N] * level_N).astype(np.float64),
        propensity_N=LOGGED[action_N],
        group_N=group_N,
        predicted_N=model[action_N],
    )
    target = Target(TARGET[action_N], np.full(count, TARGET @ model))
    return logged, target, float(TARGET @ TRUE)


def many(model: np.ndarray, *, repeats: int = 400) -> tuple[list[PolicyValue], float]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        logged, target, truth = draw(rng, model)
        found.append(policy_value(logged, target))
    return found, truth


def test_two_decisions_by_hand() -> None:
    logged = Decisions(
        reward_N=np.array([1.0, 0.0]),
        propensity_N=np.array([0.25, 0.75]),
        group_N=np.array([7, 9]),
        predicted_N=np.array([0.5, 0.2]),
    )
    found = policy_value(logged, Target(np.array([1.0, 0.0]), np.array([0.5, 0.5])))
    means = {name: interval.mean for name, interval in found.estimates.items()}
    assert means == pytest.approx(
        {IPS: 4 / 2, SNIPS: 4 / 4, DOUBLY_ROBUST: (0.5 + 4 * 0.5 + 0.5) / 2, MODEL: 0.5}
    )
    assert found.effective == pytest.approx(1.0)
    assert found.largest_weight == 4
    assert found.mean_weight.mean == 2


@pytest.mark.parametrize("model", [TRUE, np.zeros(ACTIONS), TRUE[::-1]], ids=["right", "none", "wrong"])
def test_they_are_unbiased_and_their_intervals_hold_the_truth(model: np.ndarray) -> None:
    found, truth = many(model)
    for name in (IPS, DOUBLY_ROBUST, SNIPS):
        mean_R = np.array([one.estimates[name].mean for one in found])
        error = mean_R.std(ddof=1) / np.sqrt(len(mean_R))
        assert abs(mean_R.mean() - truth) < 3.5 * error, name
        held = np.mean(
            [one.estimates[name].low <= truth <= one.estimates[name].high for one in found]  # type: ignore[operator]
        )
        assert 0.92 <= held <= 0.98, name


def test_a_right_model_narrows_the_doubly_robust_estimate_and_a_wrong_one_stays_wrong() -> None:
    right, truth = many(TRUE, repeats=60)
    wrong, _ = many(TRUE[::-1], repeats=60)

    def width(found: list[PolicyValue], name: str) -> float:
        return float(np.mean([one.estimates[name].high - one.estimates[name].low for one in found]))  # type: ignore[operator]

    assert width(right, DOUBLY_ROBUST) < 0.9 * width(right, IPS)
    assert abs(wrong[0].estimates[MODEL].mean - truth) > 0.1


def test_decisions_of_one_user_are_not_taken_for_independent() -> None:
    logged, target, _ = draw(np.random.default_rng(1), TRUE)
    twice = Decisions(
        *(
            np.concatenate([column, column])
            for column in (logged.reward_N, logged.propensity_N, logged.group_N, logged.predicted_N)
        )
    )
    both = Target(
        *(np.concatenate([column, column]) for column in (target.probability_N, target.predicted_N))
    )
    once, doubled = policy_value(logged, target), policy_value(twice, both)
    for name in (IPS, SNIPS, DOUBLY_ROBUST):
        assert doubled.estimates[name].low == pytest.approx(once.estimates[name].low)
        assert doubled.estimates[name].high == pytest.approx(once.estimates[name].high)


def test_the_policy_that_logged_is_worth_what_it_earned() -> None:
    logged, _, _ = draw(np.random.default_rng(2), np.zeros(ACTIONS))
    itself = Target(logged.propensity_N, np.zeros(len(logged.reward_N)))
    found = policy_value(logged, itself)
    for name in (IPS, SNIPS, DOUBLY_ROBUST):
        assert found.estimates[name].mean == pytest.approx(logged.reward_N.mean())
    assert found.effective == pytest.approx(len(logged.reward_N))


def test_a_lift_over_itself_is_zero_without_doubt_and_others_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth = (TARGET @ TRUE) / (LOGGED @ TRUE) - 1
    held = []
    for _ in range(300):
        logged, target, _ = draw(rng, TRUE)
        count = len(logged.reward_N)
        itself = policy_value(logged, Target(logged.propensity_N, np.full(count, LOGGED @ TRUE)))
        lifts = relative_lift(logged, policy_value(logged, target), itself)
        held.append([lifts[name].low <= truth <= lifts[name].high for name in (IPS, SNIPS, DOUBLY_ROBUST)])
        same = relative_lift(logged, itself, itself)[IPS]
        assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert (np.mean(held, axis=0) >= 0.91).all()
    assert (np.mean(held, axis=0) <= 0.985).all()


def test_impossible_chances_are_refused() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match="no logged decision"):
        Decisions(one[:0], one[:0], np.zeros(0, np.int64), one[:0])
    for wrong in (0.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="propensities"):
            Decisions(one, one * wrong, np.zeros(1, np.int64), one)
