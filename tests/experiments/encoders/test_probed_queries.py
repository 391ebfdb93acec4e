"""Which pairs the probes of `dashclip encode probe` are trained and tested on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.holdout import TRAIN, HoldoutConfig
from embeddings.evaluation import probes
from embeddings.evaluation.probe_training import FittedProbe, ProbeSplit, split_rows
from embeddings.relevance.grades import read_grades
from embeddings.tables.lsa import embed_lsa
from experiments.encoders.pipeline import measure_probes

HOLDOUT = HoldoutConfig(test_query_share=0.45, validation_query_share=0.45)


def test_queries_of_one_intent_are_on_one_side_of_a_split_over_unseen_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [f"{word} thing {number}" for number in range(30) for word in ("red", "crimson", "scarlet")]
    data, rows = tmp_path / "data", len(queries) * 4
    data.mkdir()
    products = {"product_id": range(4), "title": [f"thing {number}" for number in range(4)], "aisle": "abab"}
    pq.write_table(
        pa.table({name: list(values) for name, values in products.items()}), data / "products.parquet"
    )
    relevance = {
        "query": np.repeat(queries, 4),
        "product_id": np.tile(np.arange(4), len(queries)),
        "grade": np.random.default_rng(0).integers(3, size=rows).astype(np.int8),
        "source": ["human"] * rows,
        "intent": [f"intent {place // 12}" for place in range(rows)],
    }
    pq.write_table(pa.table(relevance), data / "relevance.parquet")
    embed_lsa(data, tmp_path / "lsa", dim=4)
    grades = read_grades(data)
    held_out_N = grades.query_roles(HOLDOUT)[grades.query_G] != TRAIN
    intent_N = grades.intent_groups()[grades.query_G][held_out_N]
    splits: list[ProbeSplit] = []

    def noted(class_N: Any, **given: Any) -> ProbeSplit:
        split = split_rows(class_N, **given)
        if len(np.unique(class_N)) == 1:  # over queries, whatever their grades
            splits.append(split)
        return split

    def guessed(_train: object, _validation: object, test_MF: Any, **_given: object) -> FittedProbe:
        return FittedProbe(np.zeros(len(test_MF), np.int64), 1)

    monkeypatch.setattr(probes, "split_rows", noted)
    monkeypatch.setattr(probes, "fit_and_predict", guessed)
    monkeypatch.setattr(probes, "IRRELEVANT_DROPPED", 0.0)  # then rows of a split are those of the pairs
    measure_probes(data, tmp_path / "lsa", tmp_path / "lsa", holdout=HOLDOUT)
    assert len(splits) >= 10
    for split in splits:
        sides = [set(intent_N[part].tolist()) for part in (split.train_M, split.validation_M, split.test_M)]
        assert sum(map(len, sides)) == len(set.union(*sides))
