"""The simulation of drift-free days, small."""

from experiments.serving_checks.drift_free_days import DriftFreeDays, Population, measure_false_alarms


def test_sixty_drift_free_days_alarm_at_most_twice_and_each_planted_shift_is_found() -> None:
    result = measure_false_alarms(DriftFreeDays(days=60, requests=600, users=2_000))
    assert result["days_with_alarm"]["day"] <= 2
    assert result["days_with_alarm"]["hour"] <= 1
    assert result["days_with_alarm"]["candidates taken for independent"] >= 50
    assert set(result["shifted_days_found_by_the_hour"].values()) == {result["shifted_days"]}


def test_equal_seeds_give_equal_days_and_a_shift_of_ten_points_is_one() -> None:
    population = Population.of(DriftFreeDays(users=100))
    first, again = (population.requests(50, seed=(1,)) for _ in range(2))
    assert (first.candidate_NC == again.candidate_NC).all()
    place = population.place("product unknown")
    from experiments.serving_checks.drift_free_days import shifts

    shifts(population)["unknown ids + 10 points"][0](again)
    gained = again.candidate_NC[:, place].mean() - first.candidate_NC[:, place].mean()
    assert abs(gained - 0.1) < 1e-6
