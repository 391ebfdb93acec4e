"""Vectors of the simulated truth know every fact, and only a simulated marketplace has them."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.evaluation.search import search
from experiments.marketplace.judgements import MarketplaceTruth
from experiments.marketplace.oracle import embed_truth, truth_vectors
from tests.experiments.marketplace.conftest import Written


def test_products_with_the_facts_that_a_query_asks_for_are_nearest(written: Written) -> None:
    truth = MarketplaceTruth.read(written.folder)
    products_PD, queries_QD = truth_vectors(truth, dim=512, seed=0)
    judgements = truth.judgements()
    found_QK = search(products_PD, queries_QD, 1)
    graded = [
        dict(
            zip(
                judgements.product_J[start:end].tolist(),
                judgements.grade_J[start:end].tolist(),
                strict=True,
            )
        )
        for start, end in zip(judgements.start_Q[:-1], judgements.start_Q[1:], strict=True)
    ]
    grades = [grade.get(found, 0) for grade, (found,) in zip(graded, found_QK.tolist(), strict=True)]
    answerable = [2 in grade.values() for grade in graded]
    assert np.mean(np.array(grades)[answerable] == 2) > 0.9


def test_the_same_facts_give_the_same_unit_vector(written: Written) -> None:
    truth = MarketplaceTruth.read(written.folder)
    products_PD, _ = truth_vectors(truth, dim=64, seed=1)
    np.testing.assert_allclose(np.linalg.norm(products_PD, axis=1), 1, atol=1e-5)
    facts: dict[tuple[int, ...], int] = {}
    for row, key in enumerate(
        zip(
            truth.type_P.tolist(),
            truth.brand_P.tolist(),
            truth.variety_P.tolist(),
            truth.flags_P.tolist(),
            strict=True,
        )
    ):
        first = facts.setdefault(key, row)
        np.testing.assert_allclose(products_PD[row], products_PD[first], atol=1e-6)
    assert len(np.unique(products_PD.round(4), axis=0)) == len(facts)


def test_real_data_have_no_truth(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a simulated marketplace"):
        embed_truth(tmp_path, tmp_path / "out")
