"""What a second panel would say: the model's answer against panels that are drawn."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from experiments.datasets.home_depot import grade_of
from experiments.grading.panel import panel_ceiling, second_panel


def panels(count: int, first: float, second: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean grades of two panels of three on the same pairs."""
    rng = np.random.default_rng(0)
    chance_N = rng.beta(first, second, count)
    one_N, other_N = (1 + rng.binomial(6, chance_N) / 3 for _ in range(2))
    return one_N, other_N


@pytest.mark.parametrize("first, second", [(3.0, 1.2), (0.8, 0.6)])
def test_the_agreement_is_that_of_a_panel_that_is_drawn(first: float, second: float) -> None:
    one_N, other_N = panels(60_000, first, second)
    found = second_panel(one_N, grade_of, raters=3)
    grade_N, again_N = (np.array([grade_of(mean) for mean in panel_N]) for panel_N in (one_N, other_N))
    assert found["macro_f1"] == pytest.approx(f1_score(grade_N, again_N, average="macro"), abs=0.01)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(grade_N, again_N), abs=0.015)
    assert found["qwk"] == pytest.approx(cohen_kappa_score(grade_N, again_N, weights="quadratic"), abs=0.015)


def test_means_of_other_numbers_of_raters_are_left_out() -> None:
    one_N, _ = panels(2000, 3.0, 1.2)
    assert second_panel(np.append(one_N, [1.5, 2.25]), grade_of, raters=3) == second_panel(
        one_N, grade_of, raters=3
    )


def test_only_an_import_of_home_depot_has_such_means(tmp_path: Path) -> None:
    one_N, _ = panels(500, 3.0, 1.2)
    assert panel_ceiling(tmp_path) is None
    (tmp_path / "source.json").write_text(json.dumps({"grade_limits": [1.75, 2.5]}))
    table = {"mean_grade": pa.array(one_N), "source": pa.array(["human"] * 499 + ["llm"])}
    pq.write_table(pa.table(table), tmp_path / "relevance.parquet")
    found = panel_ceiling(tmp_path)
    assert found is not None
    assert (found["pairs"], found["modelled"]) == (499, 1)
