"""One step of stage 2 against loops: queries made of titles, products remembered from earlier steps."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embeddings.stages.alignment import AlignBatch
from embeddings.stages.stage2 import Tuples
from embeddings.training.losses import NO_GROUP
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_task, build_small_tuples

PRODUCTS, NO_TITLE = 24, 3
WEIGHT, TEMPERATURE, REMEMBERED = 0.5, 0.1, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("step"), products=PRODUCTS, without_title={NO_TITLE})


@pytest.fixture(scope="module")
def tuples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuples:
    return build_small_tuples(data, tmp_path_factory.mktemp("tuples"))


def picked(logits: dict[int, float], own: int) -> float:
    """Cross-entropy of picking `own`."""
    return -math.log(math.exp(logits[own]) / sum(math.exp(logit) for logit in logits.values()))


def test_titles_and_the_queries_made_of_them_pick_each_other_as_a_loop_says(
    data: Path, tuples: Tuples
) -> None:
    settings = {"title_query_weight": WEIGHT, "temperature": TEMPERATURE, "product_negatives": REMEMBERED}
    task = align_task(data, tuples, **settings)
    batches = list(task.micro_batches(0, 0))
    [batch, *_] = [found for found in batches if NO_TITLE in found.products.index_B]
    [before, *_] = [found for found in batches if found is not batch]
    task.module.train()

    def vectors(of: AlignBatch) -> Tensor:
        return task.module.vectors(of)[0].detach()

    task.module.group_P = task.catalog.group_P // 4  # so that there are lookalikes
    last = before.products.index_B[-REMEMBERED:].tolist()
    candidates = [*batch.products.index_B.tolist(), *last]
    vector_CD = torch.cat([vectors(batch), vectors(before)[-REMEMBERED:]])
    group_C = [int(task.module.group_P[product]) for product in candidates]
    assert batch.title_queries is not None
    ids_UT, mask_UT, made_U, *_ = batch.title_queries
    group_U = (made_U // 4).masked_fill(made_U == NO_GROUP, NO_GROUP)
    changed = batch.title_queries._replace(group_U=group_U, host_group_U=group_U.numpy())
    batch = batch._replace(title_queries=changed)
    query_UD = task.module.query(ids_UT, mask_UT).detach()
    task.module(before)
    losses = task.module(batch)

    used = [place for place, group in enumerate(group_U.tolist()) if group != NO_GROUP]
    assert len(used) == len(group_U) - 1
    total, lookalikes = 0.0, 0
    for place in used:
        by_product = {
            other: float(vector_CD[place] @ query_UD[other]) / TEMPERATURE
            for other in used
            if other == place or group_U[other] != group_U[place]
        }
        by_query = {
            other: float(query_UD[place] @ vector_CD[other]) / TEMPERATURE
            for other, group in enumerate(group_C)
            if other == place or group != group_C[place]
        }
        lookalikes += len(used) - len(by_product)
        total += (picked(by_product, place) + picked(by_query, place)) / 2
    assert lookalikes
    assert float(losses["title_queries"].detach()) == pytest.approx(total / len(used), rel=1e-4)
    parts = losses["pqc"] + losses["products"] + WEIGHT * losses["title_queries"]
    torch.testing.assert_close(losses["loss"].detach(), parts)


def test_what_the_last_steps_trained_on_is_remembered_and_nothing_that_is_measured(
    data: Path, tuples: Tuples
) -> None:
    task = align_task(data, tuples, product_negatives=64)
    batch = next(task.micro_batches(0, 0))
    task.module.eval()(batch)
    assert len(task.module.remembered) == 0
    task.module.train()(batch)
    rows = len(batch.products.index_B)
    remembered = task.module.remembered
    assert remembered.group_Q[:rows].tolist() == batch.products.index_B.tolist()
    torch.testing.assert_close(remembered.image_QD[:rows], task.module.vectors(batch)[0].detach())


def test_positive_first_counts_the_products_that_prefer_their_positive_query(
    data: Path, tuples: Tuples
) -> None:
    task = align_task(data, tuples)
    with torch.no_grad():
        measures = task.evaluate()
        queries, first = tuples.validation.queries.to_pylist(), []
        for product, *asked in tuples.validation.tuples_NC.tolist():
            vector_D = task.encoder.product(task.encoder.load_batch(task.catalog, [product]))[0]
            query_CD = task.encoder.embed_queries([queries[query] for query in asked])
            positive, *others = (query_CD @ vector_D).tolist()
            first.append(positive > max(others))
    assert 0 < sum(first) < len(first)
    assert measures["positive_first"] == pytest.approx(sum(first) / len(first))
