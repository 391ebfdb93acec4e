"""Weights are of the right model, or refused with the file's name; frozen tables have no part in them."""

from pathlib import Path

import pytest

from embeddings.training.checkpoint import CheckpointError
from ranking.checkpoint import load_ranker_weights, ranker_weights
from ranking.model import build_ranker
from tests.ranking.random_batches import RANKERS, inputs


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = ranker_weights(build_ranker(RANKERS["dcn"], inputs(), seed=1))
    other = build_ranker(RANKERS["product + query"], inputs(), seed=1)
    with pytest.raises(CheckpointError, match="is of another model: it lacks"):
        load_ranker_weights(other, weights, source=tmp_path)


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    weights = ranker_weights(ranker)
    name = next(name for name in weights if "user" in name)
    weights[name] = weights[name][:-1]
    with pytest.raises(CheckpointError, match=r"is \(29, 4\), the model wants \(30, 4\)"):
        load_ranker_weights(ranker, weights, source=tmp_path)


def test_frozen_tables_stay_out_of_checkpoints() -> None:
    names = ranker_weights(build_ranker(RANKERS["product + query"], inputs(), seed=1))
    assert not [name for name in names if "semantic_tables" in name]
    names = ranker_weights(build_ranker(RANKERS["random tables"], inputs(), seed=1))
    assert len([name for name in names if "semantic_tables" in name]) == 2
