"""Open Bandit's layout: a bandit's log, and what products shown at random would have earned."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.abtest.offline.evaluation import evaluate
from experiments.abtest.offline.open_bandit import RANDOM, click_rates, open_bandit_decisions
from experiments.datasets.published.open_bandit import import_open_bandit
from experiments.statistics.off_policy import DOUBLY_ROBUST, IPS, SNIPS
from tests.experiments.datasets.published.published_logs import open_bandit

PRODUCTS = 5
#: The chance of a click on each product, and that of the stand-in bandit to show it.
RATES = np.array([0.05, 0.1, 0.2, 0.4, 0.6])
CHANCES = np.array([0.05, 0.05, 0.1, 0.3, 0.5])


def stand_in(folder: Path) -> tuple[Path, Path]:
    """Imports of a random policy's and a bandit's log, both simulated in the published layout."""
    source = open_bandit(folder / "obd", rows=6_000, products=PRODUCTS)
    rng = np.random.default_rng(3)
    for policy, chance_P in (("random", np.full(PRODUCTS, 1 / PRODUCTS)), ("bts", CHANCES)):
        path = source / policy / "men" / "men.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            product = int(rng.choice(PRODUCTS, p=chance_P))
            row |= {
                "item_id": str(product),
                "propensity_score": repr(float(chance_P[product])),
                "click": str(int(rng.random() < RATES[product])),
            }
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        import_open_bandit(source, folder / policy, policy=policy)  # type: ignore[arg-type]
    return folder / "random", folder / "bts"


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return stand_in(tmp_path_factory.mktemp("open_bandit"))


def test_a_bandits_log_says_what_chance_earns(imports: tuple[Path, Path]) -> None:
    random, bandit = imports
    found = evaluate(open_bandit_decisions(bandit, reference=random))
    value, truth = found.values[RANDOM], found.source.truth[RANDOM]
    assert truth == pytest.approx(RATES.mean(), abs=0.02)
    assert found.logged_mean > truth + 0.1
    for method in (IPS, SNIPS, DOUBLY_ROBUST):
        estimate = value.estimates[method]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low - 0.02 <= RATES.mean() <= estimate.high + 0.02
        assert abs(estimate.mean - found.logged_mean) > 0.1
    assert 500 < value.effective < 6_000
    assert not found.content()["simulated"]


def test_the_random_log_is_worth_what_it_earned(imports: tuple[Path, Path]) -> None:
    random, _ = imports
    found = evaluate(open_bandit_decisions(random, reference=random))
    for method in (IPS, SNIPS):
        assert found.values[RANDOM].estimates[method].mean == pytest.approx(found.source.truth[RANDOM])
    assert found.values[RANDOM].effective == pytest.approx(6_000)


def test_a_reference_that_was_not_drawn_at_random_is_refused(imports: tuple[Path, Path]) -> None:
    random, bandit = imports
    with pytest.raises(ValueError, match="not shown at random"):
        open_bandit_decisions(random, reference=bandit)


def test_click_rates_come_from_the_other_half() -> None:
    product_N = np.array([0, 0, 0, 0])
    position_N = np.zeros(4, np.int64)
    reward_N = np.array([1.0, 0.0, 1.0, 0.0])
    predicted_N, any_N = click_rates(product_N, position_N, reward_N, products=2)
    # Even rows are clicked, so odd ones are judged by clicks alone, and even ones by none.
    np.testing.assert_allclose(predicted_N, [0, 1, 0, 1])
    np.testing.assert_allclose(any_N, [0, 1, 0, 1])
